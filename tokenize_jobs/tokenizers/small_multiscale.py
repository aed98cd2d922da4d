"""A small autoencoder with VAR's residual quantizer (Tian et al. 2024): tokens are codes at several scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_jobs.config import FitMultiScaleTokenizer
from tokenize_jobs.quantization.scales import Scales
from tokenize_jobs.tokenizers.codebook import MovingCodebook
from tokenize_jobs.tokenizers.small import SmallAutoencoder
from tokenize_jobs.tokenizers.small_vq import VQShape
from tokenize_jobs.tokens import multi_scale_grid


@dataclass(frozen=True, kw_only=True)
class MultiScaleShape(VQShape):
    """Sizes of a small multi-scale autoencoder."""

    scales: Sequence[int]
    phis: int


class SmallMultiScale(SmallAutoencoder):
    """Encodes to the codes of all scales in one row."""

    shape_type: ClassVar[type[MultiScaleShape]] = MultiScaleShape

    def __init__(self, shape: MultiScaleShape, decay: float = 0.0, commitment: float = 0.0) -> None:
        tokens = multi_scale_grid(shape.codebook_size, shape.channels, [shape.scales], shape.phis)
        super().__init__(shape, shape.channels, tokens)
        self.scales = Scales(MovingCodebook(shape.codebook_size, shape.channels, decay), shape.phis)
        self.sides, self.commitment = tuple(shape.scales), commitment

    @classmethod
    def new(cls, config: FitMultiScaleTokenizer) -> Self:
        """Return a freshly initialised one."""
        shape = MultiScaleShape(
            stride=config.stride, channels=config.channels, width=config.width, depth=config.depth,
            codebook_size=config.codebook_size, scales=config.scales, phis=config.phis,
        )  # fmt: skip
        return cls(shape, config.codebook_decay, config.commitment)

    def reconstruct(self, images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return images decoded from the sum of all scales, straight-through, and what the quantizer adds.

        The mean over the scales of two squared distances between the features and the sum so far: one moves the
        features, with the weight of the commitment, the other the phis.
        """
        features = self.encoder(images)
        shrunk, summed, terms = [], torch.zeros_like(features), []
        for of_scale, _, added in self.scales.quantised(features.detach(), self.sides):
            shrunk.append(of_scale.flatten(2))
            summed = summed + added
            terms.append(
                self.commitment * F.mse_loss(features, summed.detach()) + F.mse_loss(summed, features.detach())
            )
        self.scales.codebook.follow(torch.cat(shrunk, 2)[..., None], draws)
        decoded = self.decoder(features + (summed - features).detach())
        return decoded, torch.stack(terms).mean()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, L) of images in [-1, 1]."""
        return self.scales.encode(self.encoder(images), self.sides)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of codes (B, 1, L, 1), whole numbers."""
        *_, features = self.scales.partial_sums(latents[:, 0, :, 0].long(), self.sides)
        return self.of_features(features)

    def of_features(self, features: Tensor) -> Tensor:
        """Return images in [-1, 1] of features (B, C, S, S)."""
        return super().decode(features)
