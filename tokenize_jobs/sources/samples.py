"""Shards of an image source -> samples -> cropped images; a fault never costs its neighbours.

A sample or a shard that is damaged is a fault to set aside. A storage that fails is not: it is raised, so that what
could not be read now is read by the next run.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from infra.storage import location
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.labels import NONE
from tokenize_jobs.sources.layouts import LAYOUTS
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.shard import Sample, Shard

_AT_ONCE = 16


@dataclass(frozen=True)
class CroppedSample:
    """A sample as its pixels, uint8 (size, size, 3), or without any where `fault` says why."""

    key: str
    label: int
    pixels: np.ndarray | None
    fault: str = ""


def read_shard(listing: Listing, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard, on the listing's side, in their order; a fault never costs its neighbours."""
    seen: set[str] = set()
    numbers = {name: number for number, name in enumerate(listing.classes)}
    read, root, labels = LAYOUTS[listing.format].read, location(listing.root), listing.labels
    if not shard.labels or shard.span != (0, 0):  # one file that holds all; single images are compared as they are read
        path = root / shard.files[0]
        shard.require_size(0, path, path.stat().st_size)
    name = NONE if labels.table else labels.name  # beside a table, those in the files are not asked for
    for sample in read(root, shard, lambda key: listing.holds(shard, key), name):
        label = -1 if sample.fault else labels.of(sample.key, sample.label, numbers)
        fault = sample.fault or ("duplicate id" if sample.key in seen else _label_fault(label, len(numbers)))
        if not fault:
            seen.add(sample.key)
        yield Sample(sample.key, fault=fault) if fault else replace(sample, label=label)


def _label_fault(label: int | str, classes: int) -> str:
    if isinstance(label, str):
        return f"label {label!r} is the name of no class"[:200]
    if label < 0:
        return "no label"
    return "" if label < max(classes, 1) else f"label {label} is not in 0..{classes - 1}"


def crop_shard(listing: Listing, shard: Shard, size: int) -> Iterator[CroppedSample]:
    """Yield the samples of a shard, as `read_shard` does, decoded and cropped to `size` pixels a side."""
    for sample in read_shard(listing, shard):
        pixels, fault = None, sample.fault
        if not fault:
            try:
                pixels = centre_crop(decode(sample.content), size)
            except BadImage as error:
                fault = str(error)
        yield CroppedSample(sample.key, sample.label if isinstance(sample.label, int) else -1, pixels, fault)


def cropped_images(
    listing: Listing, shard: Shard, size: int, most: int = 0, *, batch_size: int = 64
) -> Iterator[np.ndarray]:
    """Yield a shard's images uint8 (n, size, size, 3), up to `most` unless it is 0; bad ones are passed over."""
    batch: list[np.ndarray] = []
    seen = 0
    for sample in crop_shard(listing, shard, size):
        if sample.pixels is None:
            continue
        batch.append(sample.pixels)
        seen += 1
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
        if seen == most:
            break
    if batch:
        yield np.stack(batch)


def evenly(listing: Listing, size: int, most: int) -> np.ndarray:
    """Return up to `most` images uint8 (n, size, size, 3), evenly from all shards, the first of each, in their order.

    Shards that hold less than their part leave it to the others. Bad images are passed over. Shards are read at once.
    """
    taken = {index: np.zeros((0, size, size, 3), np.uint8) for index in range(len(listing.shards))}
    unread = list(taken)

    def first(index: int, wanted: int) -> np.ndarray:
        return np.concatenate([taken[index][:0], *cropped_images(listing, listing.shards[index], size, wanted)])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while unread and (missing := most - sum(map(len, taken.values()))):
            more = [(i + 1) * missing // len(unread) - i * missing // len(unread) for i in range(len(unread))]
            asked = {index: len(taken[index]) + n for index, n in zip(unread, more, strict=True) if n}
            taken.update(zip(asked, pool.map(first, asked, asked.values()), strict=True))
            unread = [index for index in unread if len(taken[index]) >= asked.get(index, 0)]
    return np.concatenate(list(taken.values()))
