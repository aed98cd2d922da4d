"""Continuous latents that are stored as they are: pixels, and what a deterministic tokenizer encodes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from tokenize_jobs.tokens.kind import TokenKind


@dataclass(frozen=True)
class PlainLatents(TokenKind):
    """C numbers at each place of a grid."""

    channels: int
    height: int
    width: int

    column: ClassVar[str] = "moments"
    numbers: ClassVar[tuple[str, ...]] = ("latent_scale",)
    form: ClassVar[str] = "deterministic"

    @property
    def dtype(self) -> np.dtype:
        """Half precision: latents are noisy anyway."""
        return np.dtype(np.float16)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (C, h, w)."""
        return (self.channels, self.height, self.width)

    @property
    def meaning(self) -> str:
        """Say what the numbers are."""
        return "mean"

    def described(self) -> dict[str, Any]:
        """Return the layout; its words are those of the first stores."""
        return {**asdict(self), "deterministic": True}

    def told(self) -> str:
        """Say what an image becomes."""
        return f"{self.channels} x {self.height} x {self.width}, {self.form}"

    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:  # noqa: ARG002
        """Return the latents float32 (B, C, h, w)."""
        return stored.astype(np.float32)

    def likeliest(self, stored: Any) -> Any:  # noqa: ANN401
        """Return the latents (B, C, h, w)."""
        return stored[:, : self.channels]

    def sums(self, stored: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return per channel in float64: count, sum and square sum of the mean, sum of the variance."""
        sums = {name: np.zeros(self.channels) for name in ("count", "mean", "square", "variance")}
        for block in stored:
            mean = self.likeliest(block).astype(np.float64)
            sums["count"] += len(mean) * self.height * self.width
            sums["mean"] += mean.sum((0, 2, 3))
            sums["square"] += np.square(mean).sum((0, 2, 3))
            sums["variance"] += self.variances(block)
        return {name: values.tolist() for name, values in sums.items()}

    def variances(self, stored: np.ndarray) -> np.ndarray | float:  # noqa: ARG002
        """Return the sum (C,) of the variances with which latents are drawn."""
        return 0.0

    def statistics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return latent_scale, which brings the latents to unit variance, and mean and deviation of each channel."""
        mean = sums["mean"] / sums["count"]
        variance = sums["square"] / sums["count"] - mean**2 + sums["variance"] / sums["count"]
        total = sums["mean"].sum() / sums["count"].sum()
        overall = (sums["square"].sum() + sums["variance"].sum()) / sums["count"].sum() - total**2
        return {
            "latent_scale": float(1 / np.sqrt(overall)),
            "channel_mean": mean.tolist(),
            "channel_std": np.sqrt(variance).tolist(),
        }

    def measured(self, manifest: Mapping[str, Any]) -> dict[str, float]:
        """Return latent_scale, and gaussian_bits: what the best constant Gaussian, diagonal, has in bits a number.

        Numbers are in a model's scale, as in a head's bits_a_latent_number; left out where a channel is constant.
        """
        deviations = np.asarray(manifest["channel_std"]) * manifest["latent_scale"]
        if not deviations.all():
            return super().measured(manifest)
        bits = float(np.log2(deviations).mean() + 0.5 * np.log2(2 * np.pi * np.e))
        return super().measured(manifest) | {"gaussian_bits": bits}

    def scale(self, manifest: Mapping[str, Any]) -> float:
        """Return the measured latent_scale."""
        return manifest["latent_scale"]

    def table(self, manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Return mean and deviation of each channel."""
        pairs = enumerate(zip(manifest["channel_mean"], manifest["channel_std"], strict=True))
        return ("channel", "mean", "std"), [(c, f"{mean:.4f}", f"{std:.4f}") for c, (mean, std) in pairs]

    def for_model(self) -> dict[str, Any]:
        """Return side and channels of the latents."""
        return {"latent_size": self.height, "latent_channels": self.channels, "tokens": {"kind": "continuous"}}
