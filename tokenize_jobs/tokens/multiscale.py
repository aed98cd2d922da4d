"""Codes of one codebook at several scales, coarse to fine: what VAR's tokenizer makes of an image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np

from tokenize_jobs.tokens.codes import collapse, spread
from tokenize_jobs.tokens.kind import TokenKind

PUBLISHED_SCALES = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
)
"""Sides of the scales for images of 256, 512 and 1024 pixels."""


@dataclass(frozen=True)
class MultiScaleCodes(TokenKind):
    """The index of a codebook's vector at each place of each scale's grid."""

    codebook_size: int
    channels: int
    """Numbers in a vector of the codebook."""
    scales: Sequence[int]
    """Side of each scale's square grid, coarse to fine."""
    phis: int
    """Convolutions that the scales share."""

    column: ClassVar[str] = "codes"
    name: ClassVar[str] = "multi-scale codes"
    numbers: ClassVar[tuple[str, ...]] = ("codebook_usage", "codebook_perplexity")

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # a manifest has lists

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integers that hold every index."""
        return np.min_scalar_type(self.codebook_size - 1)

    @property
    def choices(self) -> int:
        """The size of the codebook."""
        return self.codebook_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (L,): all scales in one row."""
        return (sum(side**2 for side in self.scales),)

    @property
    def meaning(self) -> str:
        """Say what the numbers are."""
        return f"index in a codebook of {self.codebook_size}; scales {self.scales}, coarse to fine, each row by row"

    def described(self) -> dict[str, Any]:
        """Return the layout."""
        return {"kind": self.name, **asdict(self), "scales": list(self.scales)}

    def told(self) -> str:
        """Say what an image becomes."""
        return f"{self.shape[0]} codes of {self.codebook_size} at scales {' '.join(map(str, self.scales))}"

    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:  # noqa: ARG002
        """Return the codes as whole numbers, float32 (B, 1, L, 1)."""
        return self.likeliest(stored).astype(np.float32)

    def likeliest(self, stored: Any) -> Any:  # noqa: ANN401
        """Return the codes (B, 1, L, 1)."""
        return stored[:, None, :, None]

    def sums(self, stored: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return how often each code occurs in each scale."""
        edges = pairwise(accumulate((side**2 for side in self.scales), initial=0))
        counts = [
            sum(np.bincount(block[:, start:stop].ravel(), minlength=self.codebook_size) for block in stored)
            for start, stop in edges
        ]
        return {"count": np.stack(counts).tolist()}

    def statistics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return share in use and perplexity of the codes: of all scales together, and of each."""
        of_all, of_scales = spread(sums["count"].sum(0)), [spread(counts) for counts in sums["count"]]
        return {
            "codebook_usage": of_all[0],
            "codebook_perplexity": of_all[1],
            "scale_usage": [usage for usage, _ in of_scales],
            "scale_perplexity": [perplexity for _, perplexity in of_scales],
        }

    def warning(self, statistics: Mapping[str, Any], images: int) -> str:
        """Say when hardly any code is in use, in all scales together."""
        return collapse(statistics["codebook_usage"], self.codebook_size, images * math.prod(self.shape))

    def table(self, manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Return usage and perplexity of each scale."""
        rows = zip(self.scales, manifest["scale_usage"], manifest["scale_perplexity"], strict=True)
        return ("scale", "usage", "perplexity"), [
            (f"{side}x{side}", f"{usage:.1%}", f"{perplexity:.1f}") for side, usage, perplexity in rows
        ]

    def for_model(self) -> dict[str, Any]:
        """Return the side of the feature map, and what the codes stand for."""
        return {"latent_size": self.scales[-1], "latent_channels": 1, "tokens": self.described()}
