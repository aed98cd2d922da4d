"""A codebook: its vectors, the nearest of them to a latent, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DISTANCES_AT_ONCE = 1 << 26


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (B, h, w) of the nearest vector of a codebook (K, C) to each of latents (B, C, h, w).

    In float32, by squared distance; the first of equals.
    """
    rows, codebook = latents.float().permute(0, 2, 3, 1).reshape(-1, latents.shape[1]), codebook.float()
    with in_float32(latents.device):
        norms = codebook.square().sum(1)
        found = [
            (norms - 2 * part @ codebook.T + part.square().sum(1, keepdim=True)).argmin(1)
            for part in rows.split(max(1, _DISTANCES_AT_ONCE // len(codebook)))
        ]
    return torch.cat(found).view(len(latents), *latents.shape[2:])


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Multiply and convolve in full precision, whatever the caller does: a wrong coarse code changes all finer ones."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def look_up(codes: Tensor, codebook: Tensor) -> Tensor:
    """Return the vectors (B, C, h, w) of codes (B, h, w)."""
    return F.embedding(codes, codebook).permute(0, 3, 1, 2)


class Codebook(nn.Module):
    """K vectors of C numbers, which no gradient moves."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(codes, channels))
