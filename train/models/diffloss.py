"""The Diffusion Loss (Li et al. 2024, section 3): a small diffusion model of each token given its condition."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from train.models.denoising import DenoisingHead
from train.models.diffusion import ReverseStep, TrainingTables, q_sample, row_losses, sampling_tables
from train.models.head import Guidance, HeadLoss
from train.models.head_mlp import HeadMLP, Modulations
from train.models.heads import TRAIN_TIMESTEPS, DiffusionHead, HeadSampling, Solver

FIXED_FRACTION = -1.0
"""Of a fixed variance: beta~."""


class DiffusionLoss(DenoisingHead):
    """Predicts the noise in a token and, unless the variance is fixed, where that lies between beta and beta~."""

    def __init__(self, config: DiffusionHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.channels, self.learns_variance = channels, config.variance == "learned"
        self.net = HeadMLP(channels, condition_width, channels * (1 + self.learns_variance), config.width, config.depth)
        self.tables = TrainingTables()

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:
        """Return the loss of tokens target (B, n, C) given condition (B, n, D), mean over M draws and all tokens."""
        terms = self.row_terms(
            target.flatten(0, 1), condition.flatten(0, 1), draws["uniform"].flatten(1), draws["noise"].flatten(1, 2)
        )
        mse, vb = (term.mean() for term in terms)
        return HeadLoss(mse + vb, {"mse": mse.detach(), "vb": vb.detach()} if self.learns_variance else {})

    def row_terms(self, target: Tensor, condition: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mse, vb), each (M, N), of tokens target (N, C) given condition (N, D); vb is 0 of a fixed variance.

        uniform (M, N) in [0, 1) chooses the timesteps, noise (M, N, C) is standard normal.
        """
        draws, rows = uniform.shape
        t = (uniform.reshape(-1) * TRAIN_TIMESTEPS).long()
        x0, noise = target.float().repeat(draws, 1), noise.reshape(draws * rows, -1)
        x_t = q_sample(x0, noise, t, self.tables)
        embedded = self.net.cond_embed(condition).repeat(draws, 1)  # once a token, not once a draw
        output = self.net(x_t, self.net.time_embed(t), embedded)
        if not self.learns_variance:
            mse = (noise - output).square().mean(-1)
            return mse.view(draws, rows), torch.zeros_like(mse).view(draws, rows)
        mse, vb = row_losses(output, x0, x_t, noise, t, self.tables)
        return mse.view(draws, rows), vb.view(draws, rows)

    def process(self, settings: HeadSampling, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the steps of the respaced process, last timestep first, each to be read as a `ReverseStep`."""
        tables = sampling_tables(settings.steps, settings.max_timestep, device)
        return tables.rows.flip(0), tables.timesteps.flip(0)

    def denoise(
        self,
        x: Tensor,
        older: Tensor,
        fresh: Tensor,
        row: Tensor,
        time: Tensor,
        guidance: Guidance,
        layers: Modulations,
        settings: HeadSampling,
    ) -> tuple[Tensor, Tensor]:
        """Take one reverse step; the next one gets the x_0 that the network implied."""
        output = self.net(guidance.repeat(x), time, guidance.rows, layers)
        combined = guidance.combine(output, self.channels)
        predicted, fraction = combined.chunk(2, dim=-1) if self.learns_variance else (combined, FIXED_FRACTION)
        predicted, temperature = _tempered(predicted, settings)
        step = ReverseStep(*row.unbind())
        x0 = step.predicted_x0(x, predicted)
        found = Denoised(x, x0, predicted, fraction, older, temperature, fresh)
        return SOLVERS[settings.solver](step, found), x0


def _tempered(predicted: Tensor, settings: HeadSampling) -> tuple[Tensor, float]:
    """Return the predicted noise and the scale of the fresh one.

    p^(1/temperature) has the score of p divided by the temperature, and so the predicted noise too. Dhariwal & Nichol
    2021 divide that, or scale the fresh noise; Li et al. 2024 (section 3.2) scale.
    """
    if settings.temperature_on == "noise":
        return predicted, settings.temperature
    return predicted / settings.temperature, 1.0


class Denoised(NamedTuple):
    """What a solver may use: (N, C) each, but for the temperature."""

    x: Tensor
    x0: Tensor
    predicted: Tensor
    fraction: Tensor | float
    older_x0: Tensor
    temperature: float
    fresh: Tensor


def _ancestral(step: ReverseStep, found: Denoised) -> Tensor:
    mean, deviation = step.ancestral(found.x, found.x0, found.fraction)
    return mean + found.temperature * deviation * (step.noisy * found.fresh)


def _ddim(step: ReverseStep, found: Denoised) -> Tensor:
    return step.ddim(found.x0, found.predicted)


def _dpm_solver(step: ReverseStep, found: Denoised) -> Tensor:
    return step.dpm_solver(found.x, found.x0, found.older_x0)


SOLVERS: Mapping[Solver, Callable[[ReverseStep, Denoised], Tensor]] = {
    "ancestral": _ancestral, "ddim": _ddim, "dpm-solver++": _dpm_solver,
}  # fmt: skip
"""One reverse step each: x_{t-1} of what the network said of x_t."""
