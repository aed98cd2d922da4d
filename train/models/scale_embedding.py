"""Reads codes at several scales as VAR does: a scale's input is what the coarser ones have summed to, made as small."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_jobs.quantization.codebook import Codebook
from tokenize_jobs.quantization.scales import Scales, shrink


class ScaleEmbedding(nn.Module):
    """The codebook and the phis are the tokenizer's own, and nothing trains them; a linear layer follows."""

    def __init__(self, codes: int, channels: int, sides: Sequence[int], phis: int, width: int) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.scales = Scales(Codebook(codes, channels), phis).requires_grad_(requires_grad=False)
        self.word_embed = nn.Linear(channels, width)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the input (B, L - p_0^2, width) of all scales but the first, of codes (B, L)."""
        sums = self.scales.partial_sums(codes, self.sides)
        with torch.no_grad():
            read = [_rows(features, side) for side, features in zip(self.sides[1:], sums, strict=False)]
        return self._embedded(torch.cat(read, 1))

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the codebook's vectors (B, n, C) of codes (B, n)."""
        return F.embedding(codes, self.scales.codebook.vectors)

    def summed(self, features: Tensor | float, vectors: Tensor, scale: int) -> Tensor:
        """Return the sum so far (B, C, S, S) with the vectors (B, p^2, C) of a scale."""
        side = self.sides[scale]
        return features + self.scales.added(vectors.mT.unflatten(2, (side, side)), scale, self.sides)

    def read(self, features: Tensor, scale: int) -> Tensor:
        """Return the input (B, p^2, width) of a scale, of the sum (B, C, S, S) of the coarser ones."""
        return self._embedded(_rows(features, self.sides[scale]))

    def _embedded(self, rows: Tensor) -> Tensor:
        """Map rows (B, N, C) to (B, N, width) in float32 under autocast too, as published."""
        with torch.autocast(rows.device.type, enabled=False):
            return self.word_embed(rows)


def _rows(features: Tensor, side: int) -> Tensor:
    return shrink(features, side).flatten(2).transpose(1, 2)
