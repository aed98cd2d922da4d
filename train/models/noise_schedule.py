"""The cosine noise schedule of Nichol & Dhariwal 2021 and its respaced versions, as float64 tables."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from train.models.heads import TRAIN_TIMESTEPS


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables of a T-step process, float64 on the CPU; index 0 is the least noise.

    `timestep_map` (T,) holds the index of each step in the 1000-step process that the network was trained on.
    """

    timestep_map: Tensor
    alpha_bar: Tensor

    @property
    def alpha_bar_previous(self) -> Tensor:
        """alpha_bar of the next cleaner step, 1 before the first."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @property
    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, eq. 17."""
        return 1 - self.alpha_bar / self.alpha_bar_previous

    @property
    def posterior_variance(self) -> Tensor:
        """beta~_t of q(x_{t-1} | x_t, x_0), eq. 10."""
        return self.betas * (1 - self.alpha_bar_previous) / (1 - self.alpha_bar)

    @property
    def posterior_log_variance(self) -> Tensor:
        """log beta~_t with the first entry, log 0, replaced by the second."""
        variance = self.posterior_variance
        return torch.log(torch.cat([variance[1:2], variance[1:]]) if len(variance) > 1 else self.betas)

    @property
    def posterior_mean_coef_x0(self) -> Tensor:
        """Factor of x_0 in the posterior mean, eq. 11."""
        return self.betas * self.alpha_bar_previous.sqrt() / (1 - self.alpha_bar)

    @property
    def posterior_mean_coef_xt(self) -> Tensor:
        """Factor of x_t in the posterior mean, eq. 11."""
        return (1 - self.alpha_bar_previous) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)


@lru_cache
def cosine_schedule() -> NoiseSchedule:
    """Return the 1000-step training process: alpha_bar(s) = cos^2((s + 0.008)/1.008 * pi/2), betas <= 0.999."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    total = TRAIN_TIMESTEPS
    betas = [min(1 - alpha_bar((i + 1) / total) / alpha_bar(i / total), 0.999) for i in range(total)]
    with torch.device("cpu"):  # kept for all who ask, also when the first asks while building on another device
        alpha_bars = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
        return NoiseSchedule(timestep_map=torch.arange(total), alpha_bar=alpha_bars)


@lru_cache
def respaced_schedule(steps: int, max_timestep: int | None = None) -> NoiseSchedule:
    """Return the process that visits `steps` evenly spaced timesteps 0..999 of the training process.

    With `max_timestep`, later ones are clipped to it and merge: at t = 999 the first guess of x_0 divides
    the network's error by sqrt(alpha_bar) = 5e-5, which few-step sampling does not recover from.
    Raises ValueError unless 1 <= steps <= 1000 and 0 <= max_timestep < 1000.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise ValueError(f"diffusion steps must be from 1 to {TRAIN_TIMESTEPS}, not {steps}")
    last = TRAIN_TIMESTEPS - 1
    if max_timestep is not None and not 0 <= max_timestep <= last:
        raise ValueError(f"max_timestep must be from 0 to {last}, not {max_timestep}")
    stride = last / (steps - 1) if steps > 1 else 0
    position, kept = 0.0, []
    for _ in range(steps):  # accumulated, not multiplied: reproduces the published rounding
        kept.append(round(position))
        position += stride
    if steps == 1:
        kept = [last]
    if max_timestep is not None:
        kept = sorted({min(step, max_timestep) for step in kept})
    timesteps = torch.tensor(kept, device="cpu")
    return NoiseSchedule(timestep_map=timesteps, alpha_bar=cosine_schedule().alpha_bar[timesteps])
