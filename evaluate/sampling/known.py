"""Tokens that are given to the sampler, and how two pictures tell which: what to edit, and where."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra.errors import InputError
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from train.models.config import Model

_WHITE = 127


@dataclass(frozen=True)
class Known:
    """Tokens that are given, for in-painting, out-painting and class-conditional editing."""

    latents: Tensor
    """(B, C, H, W) latents of the images to edit."""
    keep: Tensor
    """(L,) bool: tokens that stay as they are."""

    def check(self, config: Model) -> None:
        """Raise InputError unless they are tokens of this model, and leave it something to generate."""
        if self.keep.shape != (config.num_tokens,):
            raise InputError(f"the mask has shape {tuple(self.keep.shape)}; this model has {config.num_tokens} tokens")
        if bool(self.keep.all()):
            raise InputError("the mask keeps every token: nothing to generate")
        expected = config.latent_shape
        if self.latents.shape[1:] != expected:
            raise InputError(f"the latents to edit are {tuple(self.latents.shape[1:])}; this model has {expected}")


def known_from_pictures(
    image: Path, mask: Path, model: Model, stride: int, encode: Callable[[np.ndarray], Tensor]
) -> Known:
    """Return the tokens of `image` (one, cropped to the model's size) that `mask` keeps: their pixels are all black.

    `encode` turns an image uint8 (H, W, 3) into latents (1, C, h, w). Raises InputError naming the file for pictures
    that cannot be read, are too small, or differ in shape.
    """
    side = model.latent_size * stride
    shown, masked = (_read(path, side) for path in (image, mask))
    if shown.size != masked.size:
        raise InputError(
            f"--edit.mask {mask} is {masked.width}x{masked.height} pixels, the image {shown.width}x{shown.height}: "
            "both must have the same shape"
        )
    keep = ~touched(centre_crop(masked, side).max(-1) > _WHITE, model.latent_size // model.patch_size)
    return Known(encode(centre_crop(shown, side)), model.tokens.kept(keep))


def touched(pixels: np.ndarray, tokens: int) -> Tensor:
    """Return (tokens, tokens) bool: where any pixel of a token is set in pixels (H, W)."""
    return torch.from_numpy(pixels).unflatten(0, (tokens, -1)).unflatten(2, (tokens, -1)).any(3).any(1)


def _read(path: Path, side: int) -> Image.Image:
    try:
        image = decode(path.read_bytes())
    except (OSError, BadImage) as error:
        raise InputError(f"--edit: {path}: {error}") from None
    if min(image.size) < side:
        raise InputError(
            f"--edit: {path} is {image.width}x{image.height} pixels; this model's images have {side} a side"
        )
    return image
