"""Flow matching on the Diffusion Loss's MLP: predict the velocity from noise to token (Lipman et al. 2023).

x_t = t x + (1 - t) noise, velocity x - noise; t is the sigmoid of a standard normal (Esser et al. 2024).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.head import Guidance, HeadSampling, LossTerms
from train.models.head_mlp import HeadMLP

_TIME_SCALE = 1000  # the time embedding expects 0..1000
_SOLVERS = ("ancestral", "ddim")


class FlowLoss(nn.Module):
    """Predicts the velocity of a token; the same interface as `DiffusionLoss`."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = HeadMLP(channels, condition_width, channels, width, depth)

    def loss(self, target: Tensor, condition: Tensor, uniform: Tensor, noise: Tensor) -> LossTerms:
        """Return the loss of tokens target (N, C) given condition (N, D); uniform (M, N), noise (M, N, C)."""
        draws, rows = uniform.shape
        t = torch.sigmoid(torch.special.ndtri(uniform.reshape(-1, 1).clamp(1e-6, 1 - 1e-6)))
        target, noise = target.float().repeat(draws, 1), noise.reshape(draws * rows, -1)
        embedded = self.net.cond_embed(condition).repeat(draws, 1)
        velocity = self.net(t * target + (1 - t) * noise, self.net.time_embed(t[:, 0] * _TIME_SCALE), embedded)
        mse = F.mse_loss(velocity, target - noise)
        return LossTerms(loss=mse, mse=mse.detach(), vb=torch.zeros_like(mse))

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
        if settings.solver not in _SOLVERS or settings.max_timestep is not None:
            raise ValueError(f"a flow head takes solver {' or '.join(_SOLVERS)} and no max_timestep")
        steps, dt = settings.steps, 1 / settings.steps
        grid = torch.arange(steps, device=condition.device) * dt
        times = self.net.time_embed(grid * _TIME_SCALE)
        null = self.net.cond_embed(null_condition) if null_condition is not None and cfg_scale != 1.0 else None
        guidance = Guidance(self.net.cond_embed(condition), null, cfg_scale)
        x = noise[0].float()
        for step in range(steps):
            output = self.net(guidance.repeat(x), times[step : step + 1], guidance.rows)
            velocity = guidance.combine(output, self.channels)
            if settings.solver == "ancestral" and step < steps - 1:
                t = step * dt
                predicted_noise = x - t * velocity  # score = -predicted_noise / (1 - t)
                spread = settings.temperature * (2 * (1 - t) * dt) ** 0.5
                x = x + dt * (velocity - predicted_noise) + spread * noise[step + 1]
            else:
                x = x + dt * velocity
        return x
