"""Real images -> sums of their features and a subset of these, on workers fed by tasks that decode.

shards -> images uint8 (n, H, W, 3), decoded on CPU tasks -> features (n, D) on the workers' devices -> a file for each
group of shards; neither images nor features go through the driver.
"""

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.util import ActorPool
from upath import UPath

from evaluate.config import Features
from evaluate.drawn import UNREADABLE
from evaluate.features import Extractor
from evaluate.metrics.sets import FeatureSums
from infra.actors import actors
from infra.cluster import Workers
from infra.seeding import stream
from infra.storage import location, write_atomic
from tokenize_jobs.sources.listing import Listing, Shard
from tokenize_jobs.sources.samples import cropped_images

KEPT_FEATURES = 10_000  # as many as ADM's reference for precision and recall
PARTS = "parts"
_GROUPS = 64  # the sums of 2048 features are 34 MB, as large as 4,096 images' features: few are merged by the driver
_ROWS = 1024  # summed at once
_BATCHES_AHEAD, _MOST_DECODERS = 2, 16
_THUMBNAIL = 64  # pixels a side, of the kept images


@dataclass(frozen=True)
class Part:
    """Sums of some images, and those of their features that drew the smallest keys: a uniform subset of any union."""

    sums: FeatureSums
    keys: np.ndarray
    features: np.ndarray
    pictures: np.ndarray
    """Their thumbnails, as byte strings."""

    def __add__(self, following: "Part") -> "Part":
        kept = [
            np.concatenate([getattr(self, name), getattr(following, name)]) for name in ("keys", "features", "pictures")
        ]
        if len(kept[0]) > KEPT_FEATURES:
            smallest = np.sort(np.argpartition(kept[0], KEPT_FEATURES)[:KEPT_FEATURES])
            kept = [rows[smallest] for rows in kept]
        return Part(self.sums + following.sums, *kept)

    def content(self) -> bytes:
        """Return the bytes of its file."""
        buffer = io.BytesIO()
        np.savez(
            buffer, count=self.sums.count, total=self.sums.total, outer=self.sums.outer, keys=self.keys,
            features=self.features, pictures=self.pictures,
        )  # fmt: skip
        return buffer.getvalue()


def read_part(path: UPath) -> Part:
    """Read a part. A file cut short raises one of UNREADABLE, since each of its arrays has a checksum."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        sums = FeatureSums(int(saved["count"]), saved["total"], saved["outer"])
        return Part(sums, saved["keys"], saved["features"], saved["pictures"])


@dataclass(frozen=True)
class Work:
    """What every worker needs to know."""

    listing: Listing
    """Without its shards."""
    image_size: int
    features: Features
    out: str
    cores: int
    decoders: int
    """Tasks that decode for one worker."""

    @property
    def decoder_cpus(self) -> float:
        """Cores of a decoding task: of a worker's only one, half."""
        return min(1.0, self.cores / 2)

    def path(self, index: int) -> UPath:
        """Return the file of a group's sums."""
        return location(self.out) / PARTS / f"{index:04d}.npz"


@dataclass(frozen=True)
class Group:
    """Shards that one worker sums in their order: (place in the listing, shard, most images of it or 0 for all)."""

    index: int
    shards: tuple[tuple[int, Shard, int], ...]


def groups_of(listing: Listing, images: int) -> list[Group]:
    """Return the shards in at most _GROUPS groups, with as many images of each as make `images` in all."""
    each, rest = divmod(images, len(listing.shards))
    quotas = [each + (place < rest) for place in range(len(listing.shards))]
    chosen = [
        (place, shard, quotas[place]) for place, shard in enumerate(listing.shards) if quotas[place] or not images
    ]
    count = min(_GROUPS, len(chosen))
    bounds = [len(chosen) * index // count for index in range(count + 1)]
    return [Group(index, tuple(chosen[bounds[index] : bounds[index + 1]])) for index in range(count)]


def decoders_of(workers: Workers) -> int:
    """Return the tasks that decode for each worker: on all other cores beside a GPU, else on half of its own."""
    if not workers.gpus:
        return max(1, workers.cpus // 2)
    return max(1, min(_MOST_DECODERS, int(ray.cluster_resources().get("CPU", 1)) // workers.count - 1))


def measured(work: Work, groups: list[Group], workers: Workers) -> Iterator[dict[str, Any]]:
    """Yield the row of each group, in their order, once its file is there."""
    cpus = 1 if workers.gpus else work.cores - work.decoders * work.decoder_cpus
    made = actors(_Measurer, work, count=min(workers.count, len(groups)), cpus=cpus, gpus=workers.gpus)
    return ActorPool(made).map(lambda worker, group: worker.__call__.remote(group), groups)


class _Measurer:
    """One worker: an extractor, and the tasks that decode for it."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.cores)
        self.work, self.extractor = work, Extractor(work.features)

    def __call__(self, group: Group) -> dict[str, Any]:
        path = self.work.path(group.index)
        try:
            images = read_part(path).sums.count
        except UNREADABLE:
            part = self._measure(group)
            if part is not None:
                write_atomic(path, part.content())
            images = part.sums.count if part else 0
        return {"index": group.index, "images": images}

    def _measure(self, group: Group) -> Part | None:
        """Return the part of a group, or None without a usable image."""
        part, waiting = None, []
        for keys, images, pictures in self._decoded(group):
            waiting.append((keys, self.extractor(images), pictures))
            if sum(len(batch[0]) for batch in waiting) >= _ROWS:
                part, waiting = _added(part, waiting), []
        return _added(part, waiting) if waiting else part

    def _decoded(self, group: Group) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield keys, images and thumbnails of a group in the order of the source, while tasks decode what follows."""
        todo, decoding = iter(group.shards), deque[tuple[int, Any]]()
        decode: Any = ray.remote(_decode).options(
            num_cpus=self.work.decoder_cpus, num_returns="streaming", _generator_backpressure_num_objects=_BATCHES_AHEAD
        )
        while True:
            for place, shard, most in islice(todo, self.work.decoders - len(decoding)):
                batches = decode.remote(self.work.listing, shard, self.work.image_size, most)
                decoding.append((place, batches))
            if not decoding:
                return
            place, batches = decoding.popleft()
            random = stream("kept features", place)
            for batch in batches:
                images, pictures = ray.get(batch)
                yield random.random(len(images)), images, pictures


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
