"""What a sweep searches. Imports nothing heavy."""

import itertools
from dataclasses import dataclass, replace

from evaluate.config import Sampling


@dataclass(frozen=True, kw_only=True)
class SamplingSweep:
    """Every combination of these settings is one trial."""

    temperature: tuple[float, ...] = (0.95, 1.0, 1.05)
    """Temperatures."""
    cfg_scale: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Guidance scales."""
    ar_steps: tuple[int, ...] = (32, 64)
    """Autoregressive steps."""
    images: int = 10_000
    """Images of each trial."""
    seed: int = 0
    """Of the images, the same for all trials."""

    def settings(self, base: Sampling) -> list[Sampling]:
        """Return the sampling of each trial."""
        combinations = itertools.product(self.temperature, self.cfg_scale, self.ar_steps)
        return [replace(base, temperature=t, cfg_scale=c, ar_steps=a) for t, c, a in combinations]
