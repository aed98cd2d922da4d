"""No tokenizer: pixels in [-1, 1] are the latents (the paper's pixel-space experiment, with patches as tokens)."""

from torch import Tensor


class Pixels:
    """Stride 1, 3 channels, deterministic."""

    stride, channels, deterministic = 1, 3, True

    def encode(self, images: Tensor) -> Tensor:
        """Return the images (B, 3, H, W)."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, 3, H, W)."""
        return latents

    def to(self, device: str) -> "Pixels":  # noqa: ARG002
        """Do nothing: there are no weights."""
        return self
