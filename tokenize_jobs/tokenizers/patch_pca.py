"""Principal components of square patches: the linear tokenizer with the least squared error, found in one pass.

Its latents are plain numbers, and what it loses is detail, not edges: on small photographs it reconstructs better than
an autoencoder that a processor trains in minutes (docs/own-images.md).
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_jobs.config import FitPCATokenizer
from tokenize_jobs.tokenizers.fitted import Fitted, FittedShape
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokens import plain_grid

_AT_ONCE = 256
_LEAST_DEVIATION = 1e-3  # of pixels in [-1, 1]: a component below it is rounding, not to be scaled up


@dataclass(frozen=True, kw_only=True)
class PCAShape(FittedShape):
    """So many components of patches of `stride` pixels a side."""

    components: int
    whitening: float


class PatchPCA(Fitted):
    """Encodes patches to their components, each divided by its deviation to the power `whitening`; deterministic."""

    shape_type: ClassVar[type[FittedShape]] = PCAShape

    def __init__(self, shape: PCAShape) -> None:
        super().__init__(shape, plain_grid(shape.components))
        side, whole = shape.stride, {"requires_grad": False}
        self.mean = nn.Parameter(torch.zeros(3, side, side), **whole)
        self.components = nn.Parameter(torch.zeros(shape.components, 3, side, side), **whole)
        self.scales = nn.Parameter(torch.ones(shape.components), **whole)

    @classmethod
    def fitted(cls, config: FitPCATokenizer, images: np.ndarray) -> Self:
        """Return the components of the patches of images uint8 (N, H, W, 3) and of their mirror images."""
        side = config.stride
        count, total, squares = 0, 0.0, 0.0  # sums in float64
        for start in range(0, len(images), _AT_ONCE):
            batch = from_uint8(images[start : start + _AT_ONCE])
            for seen in (batch, batch.flip(3)):
                patches = F.unfold(seen, side, stride=side).mT.flatten(0, 1).double()  # (patches, 3 side^2)
                count, total = count + len(patches), total + patches.sum(0)
                squares = squares + patches.mT @ patches
        mean = total / count
        variances, vectors = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
        kept = vectors.flip(1)[:, : config.components].mT  # eigh's order is ascending
        # mirror images make entries of equal size and opposite sign: the first one decides, whatever rounding does
        near_largest = kept.abs() > 0.999 * kept.abs().amax(1, keepdim=True)
        signs = kept.gather(1, near_largest.int().argmax(1, keepdim=True)).sign()
        deviations = variances.flip(0)[: config.components].clamp(min=_LEAST_DEVIATION**2).sqrt()
        model = cls(PCAShape(stride=side, components=config.components, whitening=config.whitening))
        model.mean.copy_(mean.view(3, side, side))
        model.components.copy_((kept * signs).view(-1, 3, side, side))  # a vector's sign is nobody's choice
        model.scales.copy_(deviations**config.whitening)
        return model.eval()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images in [-1, 1]."""
        weights = self.components / self.scales.view(-1, 1, 1, 1)
        return F.conv2d(images, weights, -(weights * self.mean).sum((1, 2, 3)), stride=self.stride)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of latents (B, C, h, w)."""
        unscaled = latents.float() * self.scales.view(-1, 1, 1)
        images = F.conv_transpose2d(unscaled, self.components, stride=self.stride)
        return (images + self.mean.tile(1, *latents.shape[2:])).clamp(-1, 1)
