"""Sub-pixels: the values 0..255 of red, green and blue, as the image has them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from tokenize_jobs.tokens.kind import TokenKind

VALUES = 256


@dataclass(frozen=True)
class SubPixels(TokenKind):
    """Three values at each place of a grid."""

    height: int
    width: int

    column: ClassVar[str] = "sub_pixels"
    numbers: ClassVar[tuple[str, ...]] = ("sub_pixel_entropy",)

    @property
    def dtype(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    @property
    def choices(self) -> int:
        """Values of a sub-pixel."""
        return VALUES

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (3, h, w)."""
        return (3, self.height, self.width)

    @property
    def meaning(self) -> str:
        """Say what the numbers are."""
        return "red, green and blue, 0..255, channel axis first"

    def described(self) -> dict[str, Any]:
        """Return the layout."""
        return {"kind": self.column, **asdict(self)}

    def told(self) -> str:
        """Say what an image becomes."""
        return f"3 x {self.height} x {self.width} sub-pixels of {VALUES} values"

    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:  # noqa: ARG002
        """Return the values as whole numbers, float32 (B, 3, h, w)."""
        return stored.astype(np.float32)

    def likeliest(self, stored: Any) -> Any:  # noqa: ANN401
        """Return the values (B, 3, h, w)."""
        return stored

    def sums(self, stored: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return how often each value occurs in each colour."""
        counts = [
            sum(np.bincount(block[:, colour].ravel(), minlength=VALUES) for block in stored) for colour in range(3)
        ]
        return {"count": np.stack(counts).tolist()}

    def statistics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the entropy of the values' frequencies, in bits per dimension: what is reached without any context."""
        shares = sums["count"] / sums["count"].sum(1, keepdims=True)
        bits = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
        return {"sub_pixel_entropy": float(bits.mean())}

    def for_model(self) -> dict[str, Any]:
        """Return side and channels of the grid."""
        return {"latent_size": self.height, "latent_channels": 3, "tokens": {"kind": "sub-pixels"}}
