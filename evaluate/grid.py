"""Pictures of samples: one row a class, the same seeds every time, so that grids compare."""

import numpy as np
from PIL import Image, ImageDraw

_MARGIN, _LABEL = 2, 64


def grid(images: np.ndarray, classes: list[str], columns: int, zoom: int) -> Image.Image:
    """Return images uint8 (len(classes) * columns, H, W, 3), class by class, as one picture with the class names."""
    size = images.shape[1] * zoom
    cell = size + _MARGIN
    picture = Image.new("RGB", (_LABEL + columns * cell, len(classes) * cell), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(classes):
        draw.text((4, row * cell + size // 2 - 6), name[:10], fill="black")
        for column in range(columns):
            tile = Image.fromarray(images[row * columns + column]).resize((size, size), Image.Resampling.NEAREST)
            picture.paste(tile, (_LABEL + column * cell, row * cell))
    return picture
