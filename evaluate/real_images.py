"""Real images -> sums of their features and a subset of these, on workers fed by tasks that decode.

shards -> images uint8 (n, H, W, 3), decoded on CPU tasks -> features (n, D) on the workers' devices -> a file for each
group of shards; neither images nor features go through the driver.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray.util import ActorPool
from upath import UPath

from evaluate.arrays import UNREADABLE, packed, read_arrays
from evaluate.decoding import Decoding, Group
from evaluate.features import Extractor
from evaluate.metrics.sets import FeatureSums
from evaluate.networks import Features
from infra.actors import actors
from infra.cluster import Workers
from infra.seeding import stream
from infra.storage import location, write_atomic
from tokenize_jobs.sources.listing import Listing, Shard
from tokenize_jobs.sources.samples import cropped_images

KEPT_FEATURES = 10_000  # as many as ADM's reference for precision and recall
PARTS = "parts"
_ROWS = 1024  # summed at once
_THUMBNAIL = 64  # pixels a side, of the kept images


@dataclass(frozen=True)
class Part:
    """Sums of some images, and those of their features that drew the smallest keys: a uniform subset of any union."""

    sums: FeatureSums
    keys: np.ndarray
    features: np.ndarray
    pictures: np.ndarray
    """Their thumbnails, as byte strings."""

    @property
    def whole(self) -> bool:
        """Whether the features of all its images were kept."""
        return len(self.features) == self.sums.count

    def __add__(self, following: "Part") -> "Part":
        kept = [
            np.concatenate([getattr(self, name), getattr(following, name)]) for name in ("keys", "features", "pictures")
        ]
        if len(kept[0]) > KEPT_FEATURES:
            smallest = np.sort(np.argpartition(kept[0], KEPT_FEATURES)[:KEPT_FEATURES])
            kept = [rows[smallest] for rows in kept]
        return Part(self.sums + following.sums, *kept)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what its file holds."""
        sums = {"count": np.array(self.sums.count), "total": self.sums.total, "outer": self.sums.outer}
        return {**sums, "keys": self.keys, "features": self.features, "pictures": self.pictures}


def read_part(path: UPath) -> Part:
    """Read a part. Raises one of UNREADABLE where there is none, or no whole one."""
    return part_of(read_arrays(path))


def part_of(saved: Mapping[str, np.ndarray]) -> Part:
    """Return the part that is saved as these arrays."""
    sums = FeatureSums(int(saved["count"]), saved["total"], saved["outer"])
    return Part(sums, saved["keys"], saved["features"], saved["pictures"])


@dataclass(frozen=True)
class Work:
    """What every worker needs to know."""

    decoding: Decoding
    features: Features
    out: str

    def path(self, index: int) -> UPath:
        """Return the file of a group's sums."""
        return location(self.out) / PARTS / f"{index:04d}.npz"


def measured(work: Work, groups: list[Group], workers: Workers) -> Iterator[dict[str, Any]]:
    """Yield the row of each group, in their order, once its file is there."""
    count, cpus = min(workers.count, len(groups)), work.decoding.worker_cpus(workers.gpus)
    with actors(_Measurer, work, count=count, cpus=cpus, gpus=workers.gpus) as made:
        yield from ActorPool(made).map(lambda worker, group: worker.__call__.remote(group), groups)


class _Measurer:
    """One worker: an extractor, and the tasks that decode for it."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.decoding.cores)
        self.work, self.extractor = work, Extractor(work.features)

    def __call__(self, group: Group) -> dict[str, Any]:
        path = self.work.path(group.index)
        try:
            images = read_part(path).sums.count
        except UNREADABLE:
            part = self._measure(group)
            if part is not None:
                write_atomic(path, packed(part.arrays()))
            images = part.sums.count if part else 0
        return {"index": group.index, "images": images}

    def _measure(self, group: Group) -> Part | None:
        """Return the part of a group, or None without a usable image."""
        part, waiting, random = None, [], {}
        for place, (images, pictures) in self.work.decoding.batches(group, _decode):
            keys = random.setdefault(place, stream("kept features", place)).random(len(images))
            waiting.append((keys, self.extractor(images), pictures))
            if sum(len(batch[0]) for batch in waiting) >= _ROWS:
                part, waiting = _added(part, waiting), []
        return _added(part, waiting) if waiting else part


def _decode(listing: Listing, shard: Shard, size: int, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a shard's images uint8 (n, size, size, 3), and their thumbnails (n,) as JPEG."""
    for images in cropped_images(listing, shard, size, most):
        yield images, np.array([_thumbnail(image) for image in images])


def _thumbnail(image: np.ndarray) -> bytes:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def _added(part: Part | None, batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Part:
    keys, features, pictures = (np.concatenate(of) for of in zip(*batches, strict=True))
    found = Part(FeatureSums.of(features), keys, features, pictures)
    return found if part is None else part + found
