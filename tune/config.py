"""What a sweep searches. Imports nothing heavy."""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

from evaluate.config import DiffusionSteps, Sampling


@dataclass(frozen=True, kw_only=True)
class NoSweep:
    """Nothing is searched: the evaluation measures the recipe's own sampling settings."""

    kind: Literal["none"] = "none"
    """none: the recipe's own sampling settings are measured and registered."""


@dataclass(frozen=True, kw_only=True)
class SamplingSweep:
    """Every combination of these settings is one trial; the best one is measured and registered."""

    kind: Literal["sampling"] = "sampling"
    """sampling: many ways to sample one checkpoint."""
    temperature: tuple[float, ...] = (0.95, 1.0, 1.05)
    """Temperatures to try."""
    cfg_scale: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Guidance scales to try."""
    ar_steps: tuple[int, ...] = (32, 64)
    """Numbers of autoregressive steps to try."""
    step_schedules: tuple[tuple[int, int], ...] = ()
    """Diffusion steps in the first and the last autoregressive step; none keeps the evaluation's."""
    images: int = 10_000
    """Images drawn in each trial."""
    seed: int = 0
    """Seed of the images, the same for all trials."""

    def settings(self, base: Sampling) -> list[Sampling]:
        """Return the sampling of each trial."""
        schedules = [DiffusionSteps(first=first, last=last) for first, last in self.step_schedules]
        combinations = itertools.product(
            self.temperature, self.cfg_scale, self.ar_steps, schedules or [base.diffusion_steps]
        )
        return [
            replace(
                base, temperature=temperature, cfg_scale=cfg_scale, ar_steps=ar_steps, diffusion_steps=diffusion_steps
            )
            for temperature, cfg_scale, ar_steps, diffusion_steps in combinations
        ]
