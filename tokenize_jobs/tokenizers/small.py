"""What the small autoencoders share, which a laptop's processor can fit: they work at twice the latents' resolution.

Pixels are folded into channels (pixel unshuffle), a few residual blocks follow, and their output is folded once
more; the decoder mirrors it. Good for small pictures; for photos take a pretrained tokenizer.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_jobs.tokenizers.fitted import Fitted, FittedShape
from tokenize_jobs.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class Shape(FittedShape):
    """Sizes of a small autoencoder, whose stride is even."""

    channels: int
    width: int
    depth: int


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))


def _blocks(width: int, depth: int) -> list[nn.Module]:
    return [*(_Residual(width) for _ in range(depth)), nn.GroupNorm(8, width), nn.SiLU()]


def _conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


class SmallAutoencoder(Fitted):
    """Base of the small autoencoders, which differ in what lies between encoder and decoder."""

    shape_type: ClassVar[type[Shape]] = Shape

    def __init__(self, shape: Shape, encoded_channels: int, tokens: Grid) -> None:
        super().__init__(shape, tokens)
        fold, width, depth = shape.stride // 2, shape.width, shape.depth
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(fold), _conv(3 * fold**2, width), *_blocks(width, depth),
            nn.PixelUnshuffle(2), _conv(4 * width, encoded_channels),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            _conv(shape.channels, 4 * width), nn.PixelShuffle(2),
            *_blocks(width, depth), _conv(width, 3 * fold**2), nn.PixelShuffle(fold),
        )  # fmt: skip

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights of the decoder's last convolution."""
        return self.decoder[-2].weight

    @classmethod
    @abstractmethod
    def new(cls, config: Any) -> Self:  # noqa: ANN401  the config of its kind
        """Return the freshly initialised autoencoder that a config describes."""

    @abstractmethod
    def reconstruct(self, images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return decoded images (B, 3, H, W), with gradients, and what the fit adds to their error."""

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of latents (B, C, h, w)."""
        return self.decoder(latents.float()).clamp(-1, 1)
