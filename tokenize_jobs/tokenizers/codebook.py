"""A codebook: the nearest vector to each latent, and how one follows the latents while a tokenizer is fitted."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DISTANCES_AT_ONCE = 1 << 26
_DEAD = 0.03
"""A code whose moving count of latents is below this share of the mean is revived."""


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (B, h, w) of the nearest vector of a codebook (K, C) to each of latents (B, C, h, w).

    In float32, by squared distance; the first of equals.
    """
    rows = latents.float().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    norms = codebook.square().sum(1)
    found = [
        (norms - 2 * part @ codebook.T + part.square().sum(1, keepdim=True)).argmin(1)
        for part in rows.split(max(1, _DISTANCES_AT_ONCE // len(codebook)))
    ]
    return torch.cat(found).view(len(latents), *latents.shape[2:])


def look_up(codes: Tensor, codebook: Tensor) -> Tensor:
    """Return the vectors (B, C, h, w) of codes (B, h, w)."""
    return F.embedding(codes, codebook).permute(0, 3, 1, 2)


class MovingCodebook(nn.Module):
    """Each vector is the moving average of the latents that it was nearest to (van den Oord et al. 2017, appendix A.1).

    The vectors are latents of the first batch to begin with. A code that hardly any latent chooses is dead, and takes
    the place of a latent drawn from the batch.
    """

    def __init__(self, codes: int, channels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.zeros(codes, channels))
        self.register_buffer("counts", torch.zeros(codes))

    @torch.no_grad()
    def follow(self, latents: Tensor, draws: np.random.Generator) -> None:
        """Move towards latents (B, C, h, w)."""
        rows = latents.float().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        if not self.counts.any():
            self._place(torch.ones_like(self.counts, dtype=torch.bool), rows, draws, len(rows) / len(self.counts))
        found = nearest(latents, self.vectors).flatten()
        hits, added = torch.zeros_like(self.counts), torch.zeros_like(self.vectors)
        counts = self.counts.lerp(hits.index_add_(0, found, torch.ones_like(found, dtype=hits.dtype)), 1 - self.decay)
        sums = (self.counts[:, None] * self.vectors).lerp(added.index_add_(0, found, rows), 1 - self.decay)
        self.vectors.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1e-9), self.vectors))
        self.counts.copy_(counts)
        mean = len(rows) / len(self.counts)
        self._place(self.counts < _DEAD * mean, rows, draws, mean)

    def _place(self, which: Tensor, rows: Tensor, draws: np.random.Generator, count: float) -> None:
        """Put the codes `which` (K,) where some of the rows are, as if `count` latents had chosen each."""
        places = torch.from_numpy(draws.integers(len(rows), size=len(which))).to(rows.device)
        self.vectors.copy_(torch.where(which[:, None], rows[places], self.vectors))
        self.counts.masked_fill_(which, count)
