"""Flow matching on the Diffusion Loss's MLP: predict the velocity from noise to token (Lipman et al. 2023).

x_t = t x + (1 - t) noise, velocity x - noise; t is the sigmoid of a standard normal (Esser et al. 2024).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.denoising import DenoisingHead
from train.models.head import Guidance, HeadLoss
from train.models.head_mlp import HeadMLP, Modulations
from train.models.heads import FlowHead, HeadSampling, Solver

_TIME_SCALE = 1000  # the time embedding expects 0..1000


class FlowLoss(DenoisingHead):
    """Predicts the velocity of a token."""

    def __init__(self, config: FlowHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.net = HeadMLP(channels, condition_width, channels, config.width, config.depth)

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:
        """Return the loss of tokens target (B, n, C) given condition (B, n, D), mean over M draws and all tokens."""
        uniform, noise = draws["uniform"].flatten(1), draws["noise"].flatten(1, 2)
        times, rows = uniform.shape
        t = torch.sigmoid(torch.special.ndtri(uniform.reshape(-1, 1).clamp(1e-6, 1 - 1e-6)))
        target, noise = target.flatten(0, 1).float().repeat(times, 1), noise.reshape(times * rows, -1)
        embedded = self.net.cond_embed(condition.flatten(0, 1)).repeat(times, 1)
        velocity = self.net(t * target + (1 - t) * noise, self.net.time_embed(t[:, 0] * _TIME_SCALE), embedded)
        mse = F.mse_loss(velocity, target - noise)
        return HeadLoss(mse, {"mse": mse.detach()})

    def process(self, settings: HeadSampling, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the steps from noise to token, each to be read as a `FlowStep`.

        Raises ValueError for settings that only the diffusion head has.
        """
        self.config.check(settings)
        rows = flow_rows(settings.steps, device)
        return rows, rows[:, 0] * _TIME_SCALE

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
        """Take one step forward; the solvers look back at none.

        ancestral: dx = (v + (1 - t) score) dt + sqrt(2 (1 - t)) temperature dW, the last step along v alone.
        """
        velocity = guidance.combine(self.net(guidance.repeat(x), time, guidance.rows, layers), self.channels)
        return SOLVERS[settings.solver](FlowStep(*row.unbind()), x, velocity, settings.temperature * fresh), older


class FlowStep(NamedTuple):
    """One step forward: 0-d float32 tensors."""

    t: Tensor
    dt: Tensor
    spread: Tensor
    """Of the noise that Euler-Maruyama adds: sqrt(2 (1 - t) dt), and 0 in the last step."""


@lru_cache(maxsize=256)
def flow_rows(steps: int, device: torch.device) -> Tensor:
    """Return the steps (steps, 3) of a flow, float32, each to be read as a `FlowStep`; made once a setting."""
    t, dt = torch.arange(steps, dtype=torch.float64) / steps, 1 / steps
    spread = (2 * (1 - t) * dt).sqrt()
    spread[-1] = 0
    return torch.stack([t, torch.full_like(t, dt), spread], 1).float().to(device)


def _euler(step: FlowStep, x: Tensor, velocity: Tensor, _: Tensor) -> Tensor:
    return x + step.dt * velocity


def _euler_maruyama(step: FlowStep, x: Tensor, velocity: Tensor, noise: Tensor) -> Tensor:
    predicted_noise = x - step.t * velocity  # score = -predicted_noise / (1 - t)
    towards = step.spread**2 / (2 * (1 - step.t))  # dt, and 0 in the last step: straight to the token
    return x + step.dt * velocity - towards * predicted_noise + step.spread * noise


SOLVERS: Mapping[Solver, Callable[[FlowStep, Tensor, Tensor, Tensor], Tensor]] = {
    "ancestral": _euler_maruyama, "ddim": _euler,
}  # fmt: skip
"""One step forward: (step, x, velocity, fresh noise at its temperature) -> x."""
