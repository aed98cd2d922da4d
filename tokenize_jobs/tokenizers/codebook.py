"""How a codebook follows the latents while a tokenizer is fitted."""

import numpy as np
import torch
from torch import Tensor

from tokenize_jobs.quantization.codebook import Codebook, nearest

_DEAD = 0.03
"""A code whose moving count of latents is below this share of the mean is revived."""


class MovingCodebook(Codebook):
    """Each vector is the moving average of the latents that it was nearest to (van den Oord et al. 2017, appendix A.1).

    The vectors are latents of the first batch to begin with. A code that hardly any latent chooses is dead, and takes
    the place of a latent drawn from the batch.
    """

    def __init__(self, codes: int, channels: int, decay: float) -> None:
        super().__init__(codes, channels)
        self.decay = decay
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
