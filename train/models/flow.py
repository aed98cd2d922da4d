"""Flow matching on the Diffusion Loss's MLP: predict the velocity from noise to token (Lipman et al. 2023).

x_t = t x + (1 - t) noise, velocity x - noise; t is the sigmoid of a standard normal (Esser et al. 2024).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.head import Guidance, HeadLoss, TokenHead
from train.models.head_mlp import HeadMLP
from train.models.heads import FlowHead, HeadSampling, Solver

_TIME_SCALE = 1000  # the time embedding expects 0..1000


class FlowLoss(TokenHead):
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
        """Draw tokens (N, C) float32 given condition (N, D); noise (steps, N, C) in order of use.

        ancestral: dx = (v + (1 - t) score) dt + sqrt(2 (1 - t)) temperature dW, the last step without noise.
        Raises ValueError for settings that only the diffusion head has.
        """
        self.config.check(settings)
        steps, dt = settings.steps, 1 / settings.steps
        grid = torch.arange(steps, device=condition.device) * dt
        times = self.net.time_embed(grid * _TIME_SCALE)
        null = self.net.cond_embed(null_condition) if null_condition is not None and cfg_scale != 1.0 else None
        guidance = Guidance(self.net.cond_embed(condition), null, cfg_scale)
        layers = self.net.modulation_layers(len(guidance.rows))
        x, forward = noise[0].float(), SOLVERS[settings.solver]
        for step in range(steps):
            output = self.net(guidance.repeat(x), times[step : step + 1], guidance.rows, layers)
            velocity = guidance.combine(output, self.channels)
            fresh = noise[step + 1] if step < steps - 1 else None
            x = forward(x, velocity, step * dt, dt, settings.temperature, fresh)
        return x


def _euler(x: Tensor, velocity: Tensor, _: float, dt: float, __: float, ___: Tensor | None) -> Tensor:
    return x + dt * velocity


def _euler_maruyama(
    x: Tensor, velocity: Tensor, t: float, dt: float, temperature: float, noise: Tensor | None
) -> Tensor:
    if noise is None:
        return x + dt * velocity
    predicted_noise = x - t * velocity  # score = -predicted_noise / (1 - t)
    spread = temperature * (2 * (1 - t) * dt) ** 0.5
    return x + dt * (velocity - predicted_noise) + spread * noise


SOLVERS: Mapping[Solver, Callable[..., Tensor]] = {"ancestral": _euler_maruyama, "ddim": _euler}
"""One step forward: (x, velocity, t, dt, temperature, fresh noise but in the last step) -> x."""
