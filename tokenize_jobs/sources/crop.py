"""Image bytes -> uint8 RGB square, as ADM and MAR crop: halve with a box filter, then bicubic, then the centre.

Dhariwal & Nichol 2021. Decoding is strict: what Pillow cannot read whole is an error, and the caller sets the
image aside.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_SMALLEST_SIDE = 8
_MOST_SIDES = 64  # longer side to shorter: scaled up to a square's side, a thread of an image takes gigabytes
_MOST_PIXELS = 178_956_970  # where Pillow itself calls an image a decompression bomb


class BadImage(Exception):
    """The bytes are not an image that can be used; the message is the reason to quarantine it."""


def decode(content: bytes) -> Image.Image:
    """Return the image as RGB, upright by its EXIF orientation; the first frame of an animation; alpha is dropped.

    Raises BadImage for truncated or foreign bytes, bombs, and images too small or too narrow to be cropped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > _MOST_PIXELS:
                raise BadImage(f"decompression bomb: {image.width}x{image.height} pixels")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a channel: keep the upper 8, Pillow's convert would clip
                upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            rgb = upright.convert("RGB")
    except BadImage:
        raise
    except UnidentifiedImageError:  # its own text names a memory address, and records must be reproducible
        raise BadImage("cannot be decoded: not an image") from None
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise anything on damaged bytes
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}"[:200]) from None
    if min(rgb.size) < _SMALLEST_SIDE:
        raise BadImage(f"too small: {rgb.width}x{rgb.height} pixels")
    if max(rgb.size) > _MOST_SIDES * min(rgb.size):
        raise BadImage(f"too narrow: {rgb.width}x{rgb.height} pixels")
    return rgb


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return the centre of an RGB image as uint8 (size, size, 3), scaled so that its shorter side fits."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    wanted = (round(image.width * scale), round(image.height * scale))
    if wanted != image.size:
        image = image.resize(wanted, resample=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].copy()
