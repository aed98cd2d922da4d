"""Continuous latents that are stored as a Gaussian posterior, and drawn from it each time an image is seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from tokenize_jobs.tokens.plain import PlainLatents


@dataclass(frozen=True)
class GaussianLatents(PlainLatents):
    """C means and C log variances at each place of a grid."""

    form: ClassVar[str] = "Gaussian posterior"

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (2C, h, w)."""
        return (2 * self.channels, self.height, self.width)

    @property
    def meaning(self) -> str:
        """Say what the numbers are."""
        return "mean then log variance of the posterior, channel axis first"

    def described(self) -> dict[str, Any]:
        """Return the layout; its words are those of the first stores."""
        return {**asdict(self), "deterministic": False}

    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:
        """Return one draw float32 (B, C, h, w) from each posterior."""
        latents = super().draw(self.likeliest(stored), streams)
        deviation = np.exp(0.5 * self._log_variance(stored, np.float32))
        noise = np.stack([random.standard_normal(latents.shape[1:], dtype=np.float32) for random in streams])
        return latents + deviation * noise

    def variances(self, stored: np.ndarray) -> np.ndarray:
        """Return the sum (C,) of the posteriors' variances."""
        return np.exp(self._log_variance(stored, np.float64)).sum((0, 2, 3))

    def _log_variance(self, stored: np.ndarray, dtype: type) -> np.ndarray:
        return stored[:, self.channels :].astype(dtype).clip(-30, 20)
