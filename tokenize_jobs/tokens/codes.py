"""Codes of one codebook: what a vector-quantizing tokenizer makes of an image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from tokenize_jobs.tokens.kind import TokenKind

COLLAPSED = 0.1
"""Share in use of what can be, below which a store warns."""


@dataclass(frozen=True)
class Codes(TokenKind):
    """The index of a codebook's vector at each place of a grid."""

    codebook_size: int
    height: int
    width: int

    column: ClassVar[str] = "codes"
    numbers: ClassVar[tuple[str, ...]] = ("codebook_usage", "codebook_perplexity")

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
        """Return (h, w)."""
        return (self.height, self.width)

    @property
    def meaning(self) -> str:
        """Say what the numbers are."""
        return f"index in a codebook of {self.codebook_size}"

    def described(self) -> dict[str, Any]:
        """Return the layout."""
        return {"kind": self.column, **asdict(self)}

    def told(self) -> str:
        """Say what an image becomes."""
        return f"{self.height} x {self.width} codes of {self.codebook_size}"

    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:  # noqa: ARG002
        """Return the codes as whole numbers, float32 (B, 1, h, w)."""
        return stored[:, None].astype(np.float32)

    def likeliest(self, stored: Any) -> Any:  # noqa: ANN401
        """Return the codes (B, 1, h, w)."""
        return stored[:, None]

    def sums(self, stored: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return how often each code occurs."""
        counts = sum(np.bincount(block.ravel(), minlength=self.codebook_size) for block in stored)
        return {"count": np.asarray(counts).tolist()}

    def statistics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the share of codes in use, and the perplexity exp(entropy) of their frequencies, at most the size."""
        usage, perplexity = spread(sums["count"])
        return {"codebook_usage": usage, "codebook_perplexity": perplexity}

    def warning(self, statistics: Mapping[str, Any], images: int) -> str:
        """Say when hardly any code is in use."""
        return collapse(statistics["codebook_usage"], self.codebook_size, images * math.prod(self.shape))

    def for_model(self) -> dict[str, Any]:
        """Return the side of the grid, and that a token is one code."""
        return {
            "latent_size": self.height,
            "latent_channels": 1,
            "tokens": {"kind": self.column, "codebook_size": self.codebook_size},
        }


def spread(counts: np.ndarray) -> tuple[float, float]:
    """Return the share of codes that occur, and the perplexity exp(entropy) of their frequencies."""
    shares = counts / counts.sum()
    used = shares[shares > 0]
    return len(used) / len(counts), float(np.exp(-(used * np.log(used)).sum()))


def collapse(usage: float, codebook_size: int, codes: int) -> str:
    """Say when hardly any code is in use of those that so many codes can use, or nothing."""
    if usage >= COLLAPSED * min(1, codes / codebook_size):
        return ""
    return f"the codebook has collapsed: {usage:.1%} of its {codebook_size} codes are in use"
