"""Pictures of samples: one row a class, the same seeds every time, so that grids compare."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

_MARGIN, _LABEL, _MOST_ROWS, _SMALLEST = 2, 64, 10, 64


def sample_grid(
    sample: Callable[[int], np.ndarray], count: int, classes: Sequence[str], columns: int = 10
) -> Image.Image:
    """Return the first of `count` samples as one picture, a row for each of the first classes, with their names.

    `sample` returns sample i, uint8 (H, W, 3); its class is i modulo the number of classes.
    """
    columns, rows = max(1, min(columns, count // len(classes))), classes[: min(_MOST_ROWS, count)]
    images = [[sample(label + column * len(classes)) for column in range(columns)] for label in range(len(rows))]
    height, width = images[0][0].shape[:2]
    zoom = max(1, _SMALLEST // height)
    cell = (width * zoom + _MARGIN, height * zoom + _MARGIN)
    picture = Image.new("RGB", (_LABEL + columns * cell[0], len(rows) * cell[1]), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(rows):
        draw.text((4, row * cell[1] + cell[1] // 2 - 6), name[:10], fill="black")
        for column, image in enumerate(images[row]):
            tile = Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            picture.paste(tile, (_LABEL + column * cell[0], row * cell[1]))
    return picture
