"""A small VQ-VAE (van den Oord et al. 2017): tokens are codes of a codebook that follows the latents."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_jobs.config import FitVQTokenizer
from tokenize_jobs.quantization.codebook import look_up, nearest
from tokenize_jobs.tokenizers.codebook import MovingCodebook
from tokenize_jobs.tokenizers.small import Shape, SmallAutoencoder
from tokenize_jobs.tokens import code_grid


@dataclass(frozen=True, kw_only=True)
class VQShape(Shape):
    """Sizes of a small VQ-VAE."""

    codebook_size: int


class SmallVQ(SmallAutoencoder):
    """Encodes to the code at each place."""

    shape_type: ClassVar[type[Shape]] = VQShape

    def __init__(self, shape: VQShape, decay: float = 0.0, commitment: float = 0.0) -> None:
        super().__init__(shape, shape.channels, code_grid(shape.codebook_size))
        self.codebook, self.commitment = MovingCodebook(shape.codebook_size, shape.channels, decay), commitment

    @classmethod
    def new(cls, config: FitVQTokenizer) -> Self:
        """Return a freshly initialised one."""
        shape = VQShape(
            stride=config.stride, channels=config.channels, width=config.width, depth=config.depth,
            codebook_size=config.codebook_size,
        )  # fmt: skip
        return cls(shape, config.codebook_decay, config.commitment)

    def reconstruct(self, images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return images decoded from the vectors nearest to the latents, straight-through, and the commitment term."""
        latents = self.encoder(images)
        self.codebook.follow(latents, draws)
        vectors = look_up(nearest(latents, self.codebook.vectors), self.codebook.vectors)
        decoded = self.decoder(latents + (vectors - latents).detach())
        return decoded, self.commitment * F.mse_loss(latents, vectors)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, h, w) of images in [-1, 1]."""
        return nearest(self.encoder(images), self.codebook.vectors)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of codes (B, 1, h, w), whole numbers."""
        return super().decode(look_up(latents[:, 0].long(), self.codebook.vectors))
