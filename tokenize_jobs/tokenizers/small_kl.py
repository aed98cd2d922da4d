"""A small KL autoencoder: tokens are continuous, with a Gaussian posterior."""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from tokenize_jobs.config import FitTokenizer
from tokenize_jobs.tokenizers.small import Shape, SmallAutoencoder
from tokenize_jobs.tokens import gaussian_grid


class SmallKL(SmallAutoencoder):
    """Encodes to (mean, log variance) of a Gaussian posterior."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, 2 * shape.channels, gaussian_grid(shape.channels))
        self.kl_weight = 0.0

    @classmethod
    def new(cls, config: FitTokenizer) -> Self:
        """Return a freshly initialised one."""
        model = cls(Shape(stride=config.stride, channels=config.channels, width=config.width, depth=config.depth))
        model.kl_weight = config.kl_weight
        return model

    def reconstruct(self, images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return images decoded from one draw of each posterior, and its weighted KL divergence."""
        mean, log_variance = self.encoder(images).clamp(-30, 20).chunk(2, 1)
        noise = torch.from_numpy(draws.standard_normal(mean.shape, dtype=np.float32)).to(images.device)
        decoded = self.decoder(mean + torch.exp(0.5 * log_variance) * noise)
        return decoded, self.kl_weight * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return moments (B, 2C, h, w) of images in [-1, 1]."""
        return self.encoder(images)
