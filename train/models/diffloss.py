"""The Diffusion Loss (Li et al. 2024, section 3): a small diffusion model of each token given its condition."""

from collections.abc import Callable, Mapping

from torch import Tensor

from train.models.diffusion import SamplingTables, TrainingTables, q_sample, row_losses, sampling_tables
from train.models.head import Guidance, HeadLoss, TokenHead
from train.models.head_mlp import HeadMLP
from train.models.heads import DiffusionHead, HeadSampling, Solver
from train.models.noise_schedule import TRAIN_TIMESTEPS


class DiffusionLoss(TokenHead):
    """Predicts the noise in a token, and where its variance lies between beta and beta~."""

    def __init__(self, config: DiffusionHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = HeadMLP(channels, condition_width, 2 * channels, config.width, config.depth)
        self.tables = TrainingTables()

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:
        """Return the loss of tokens target (B, n, C) given condition (B, n, D), mean over M draws and all tokens."""
        terms = self.row_terms(
            target.flatten(0, 1), condition.flatten(0, 1), draws["uniform"].flatten(1), draws["noise"].flatten(1, 2)
        )
        mse, vb = (term.mean() for term in terms)
        return HeadLoss(mse + vb, {"mse": mse.detach(), "vb": vb.detach()})

    def row_terms(self, target: Tensor, condition: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mse, vb), each (M, N), of tokens target (N, C) given condition (N, D).

        uniform (M, N) in [0, 1) chooses the timesteps, noise (M, N, C) is standard normal.
        """
        draws, rows = uniform.shape
        t = (uniform.reshape(-1) * TRAIN_TIMESTEPS).long()
        x0, noise = target.float().repeat(draws, 1), noise.reshape(draws * rows, -1)
        x_t = q_sample(x0, noise, t, self.tables)
        embedded = self.net.cond_embed(condition).repeat(draws, 1)  # once a token, not once a draw
        output = self.net(x_t, self.net.time_embed(t), embedded)
        mse, vb = row_losses(output, x0, x_t, noise, t, self.tables)
        return mse.view(draws, rows), vb.view(draws, rows)

    def sampling_draws(self, settings: HeadSampling) -> int:
        """Return the number of steps: the initial noise, and that of each step but the last."""
        return settings.steps

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw tokens (N, C) float32 given condition (N, D).

        noise (steps, N, C): the initial noise, then that of each step but the last, in order of use.
        """
        tables = sampling_tables(settings.steps, settings.max_timestep, condition.device)
        return self.denoise(condition, noise, settings, tables, null_condition, cfg_scale)

    def denoise(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        tables: SamplingTables,
        null_condition: Tensor | None,
        cfg_scale: float,
    ) -> Tensor:
        """Do what `sample` does with tables at hand: one graph without a wait for the host, for `torch.compile`."""
        times = self.net.time_embed(tables.timesteps)  # one row a step, not one a token
        null = self.net.cond_embed(null_condition) if null_condition is not None and cfg_scale != 1.0 else None
        guidance = Guidance(self.net.cond_embed(condition), null, cfg_scale)
        layers = self.net.modulation_layers(len(guidance.rows))
        x, older_x0, reverse = noise[0].float(), None, SOLVERS[settings.solver]
        for used, index in enumerate(reversed(range(tables.steps)), start=1):
            output = self.net(guidance.repeat(x), times[index : index + 1], guidance.rows, layers)
            predicted, fraction = guidance.combine(output, self.channels).chunk(2, dim=-1)
            predicted, scale = _tempered(predicted, settings)
            fresh = scale, noise[used] if index > 0 else None
            x, older_x0 = reverse(tables, index, x, predicted, fraction, fresh, older_x0)
        return x


def _tempered(predicted: Tensor, settings: HeadSampling) -> tuple[Tensor, float]:
    """Return the predicted noise and the scale of the fresh one.

    p^(1/temperature) has the score of p divided by the temperature, and so the predicted noise too. Dhariwal & Nichol
    2021 divide that, or scale the fresh noise; Li et al. 2024 (section 3.2) scale.
    """
    if settings.temperature_on == "noise":
        return predicted, settings.temperature
    return predicted / settings.temperature, 1.0


_Fresh = tuple[float, Tensor | None]


def _ancestral(
    tables: SamplingTables, index: int, x: Tensor, predicted: Tensor, fraction: Tensor, fresh: _Fresh, _: Tensor | None
) -> tuple[Tensor, None]:
    temperature, noise = fresh
    mean, deviation = tables.ancestral(index, x, predicted, fraction)
    return mean if noise is None else mean + temperature * deviation * noise, None


def _ddim(
    tables: SamplingTables, index: int, x: Tensor, predicted: Tensor, _: Tensor, __: _Fresh, ___: Tensor | None
) -> tuple[Tensor, None]:
    return tables.ddim(index, x, predicted), None


def _dpm_solver(
    tables: SamplingTables, index: int, x: Tensor, predicted: Tensor, _: Tensor, __: _Fresh, older_x0: Tensor | None
) -> tuple[Tensor, Tensor]:
    x0 = tables.predicted_x0(index, x, predicted)
    return tables.dpm_solver(index, x, x0, older_x0), x0


SOLVERS: Mapping[Solver, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "ancestral": _ancestral, "ddim": _ddim, "dpm-solver++": _dpm_solver,
}  # fmt: skip
"""One reverse step: (tables, index, x, predicted noise, variance fraction, (temperature, fresh noise), the x_0 of the
step before) -> (x, the x_0 that the next step may ask for)."""
