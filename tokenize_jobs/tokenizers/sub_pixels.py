"""No tokenizer at all: the sub-pixels of an image are its tokens, whole numbers 0..255."""

import torch
from torch import Tensor

from tokenize_jobs.tokens import sub_pixel_grid


class SubPixelValues:
    """Stride 1, exact both ways."""

    stride, tokens = 1, staticmethod(sub_pixel_grid)

    def encode(self, images: Tensor) -> Tensor:
        """Return the values uint8 (B, 3, H, W) of images in [-1, 1]."""
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of values (B, 3, H, W)."""
        return latents.float() / 127.5 - 1

    def to(self, device: str) -> "SubPixelValues":  # noqa: ARG002
        """Do nothing: there are no weights."""
        return self
