"""What is kept of generated images: features, a file for each range of their indices, from which every number follows.

A file is whole or not there, and each of its arrays has a checksum: one that was cut short is made again, never merged.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from upath import UPath

from evaluate.arrays import UNREADABLE, packed, read_arrays
from infra.storage import write_atomic

GRID_ROWS = 10
_ARRAYS = ("features", "logits", "judged", "shown")
_OPTIONAL = ("seconds", "labels", "shown_at")


@dataclass(frozen=True)
class Drawn:
    """Generated images of a range of indices, as they are kept."""

    features: np.ndarray
    """(n, D) float32."""
    logits: np.ndarray
    """(n, classes) float32 of the extractor; no columns when it is no classifier."""
    judged: np.ndarray
    """(n,) class that the classifier takes each for, or empty without one."""
    shown: np.ndarray
    """(k, H, W, 3) uint8: those of the sample grid, or of a wider one."""
    seconds: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """(ranges, 2) of wall time: drawing, and everything after it; a range drawn beside others counts its share."""
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) class of each; empty where it follows from the index."""
    shown_at: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """(k,) index of each of those that are shown; empty where these are not looked up by it."""

    def first(self, count: int) -> "Drawn":
        """Return the first `count` images; what is shown stays."""
        rows = {name: getattr(self, name)[:count] for name in ("features", "logits", "judged", "labels")}
        return replace(self, **rows)


def merged(parts: Iterable[Drawn]) -> Drawn:
    """Return adjoining ranges as one."""
    found = list(parts)
    return Drawn(*(np.concatenate([getattr(part, name) for part in found]) for name in (*_ARRAYS, *_OPTIONAL)))


def range_path(folder: UPath, span: range) -> UPath:
    """Return the file of a range of image indices."""
    return folder / f"{span.start:07d}-{span.stop:07d}.npz"


def write_drawn(path: UPath, drawn: Drawn) -> None:
    """Write images as they are kept, atomically."""
    write_atomic(path, packed({name: getattr(drawn, name) for name in (*_ARRAYS, *_OPTIONAL)}))


def read_range(folder: UPath, span: range) -> Drawn | None:
    """Return the images of a range, or None when they are not there, or not whole."""
    drawn = read_drawn(range_path(folder, span))
    return drawn if drawn is not None and len(drawn.features) == len(span) else None


def read_drawn(path: UPath) -> Drawn | None:
    """Return the images of a file, or None when it is not there, or not whole."""
    try:
        saved = read_arrays(path)
    except UNREADABLE:
        return None
    if not {*_ARRAYS} <= saved.keys() <= {*_ARRAYS, *_OPTIONAL}:  # a name that is damaged too is none of these
        return None
    drawn = Drawn(**saved)
    return drawn if len(drawn.features) == len(drawn.logits) else None


def find_ranges(folder: UPath) -> dict[range, Drawn]:
    """Return the whole ranges in `folder`, whatever sizes they were drawn in."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    matches = [match for name in names if (match := re.fullmatch(r"(\d{7})-(\d{7})\.npz", name))]
    spans = [range(int(match[1]), int(match[2])) for match in matches]
    return {span: drawn for span in spans if (drawn := read_range(folder, span)) is not None}


def cover(have: Iterable[range], images: int, batch_size: int) -> tuple[list[range], list[range]]:
    """Return the ranges that cover the indices below `images` in order, and which of them are missing in `have`.

    The last one may go beyond.
    """
    longest = {span.start: span for span in sorted(have, key=lambda span: span.stop)}
    chosen, missing, start = [], [], 0
    while start < images:
        if start in longest:
            span = longest[start]
        else:
            following = min((other for other in longest if other > start), default=images)
            span = range(start, min(start + batch_size, following, images))
            missing.append(span)
        chosen.append(span)
        start = span.stop
    return chosen, missing


def is_shown(index: int, classes: int, columns: int) -> bool:
    """Tell whether image `index` belongs to the sample grid: the first ones of each of the first classes."""
    return index % classes < GRID_ROWS and index // classes < columns


def write_shard(path: UPath, images: Sequence[np.ndarray], indices: Sequence[int], classes: int) -> None:
    """Write images as PNG, with their classes, in a WebDataset shard; the key is the image's index."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for image, index in zip(images, indices, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(index % classes).encode())):
                member = tarfile.TarInfo(f"{index:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_atomic(path, buffer.getvalue())
