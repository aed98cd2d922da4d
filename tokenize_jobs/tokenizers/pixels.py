"""Pixels as a tokenizer takes and returns them, in [-1, 1]; and no tokenizer at all, pixels being the latents."""

import numpy as np
import torch
from torch import Tensor

from tokenize_jobs.tokens import plain_grid


def from_uint8(images: np.ndarray, device: str = "cpu") -> Tensor:
    """Return images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images (B, 3, H, W) in [-1, 1] as uint8 (B, H, W, 3), rounded as the published evaluation does."""
    scaled = ((images.float().cpu() + 1) * 127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class Pixels:
    """Stride 1, 3 channels, deterministic: the paper's pixel-space experiment, with patches as tokens."""

    stride, tokens = 1, staticmethod(plain_grid(3))

    def encode(self, images: Tensor) -> Tensor:
        """Return the images (B, 3, H, W)."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, 3, H, W)."""
        return latents

    def to(self, device: str) -> "Pixels":  # noqa: ARG002
        """Do nothing: there are no weights."""
        return self
