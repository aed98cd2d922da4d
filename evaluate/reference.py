"""Real images -> a reference: what generated images are measured against, made once for all models and settings.

shards -> images uint8 (n, H, W, 3), decoded on CPU tasks -> features (n, D) on the workers' devices -> their sums, and
a subset of them. Sums are merged on the workers, a group of shards each; images and features never reach the driver.
"""

import io
import shutil
import zipfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from upath import UPath

from evaluate.config import Features, Reference
from evaluate.features import Extractor, weights_hash
from evaluate.metrics.frechet import FeatureSums, Statistics
from evaluate.results import ReferenceResult
from infra.actors import actors
from infra.cluster import Compute, Workers, connected
from infra.console import Progress
from infra.errors import InputError
from infra.fingerprint import canonical, from_json
from infra.seeding import stream
from infra.storage import location, write_atomic, write_json
from tokenize_jobs.sources.listing import Listing, Shard
from tokenize_jobs.sources.samples import cropped_images

KEPT_FEATURES = 10_000  # as many as ADM's reference for precision and recall
_GROUPS = 64  # the sums of 2048 features are 34 MB, as large as 4,096 images' features: few are merged by the driver
_ROWS = 1024  # summed at once
_BATCHES_AHEAD, _MOST_DECODERS = 2, 16
_SUMS, _ABOUT, _PARTS = "reference.npz", "reference.json", "parts"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class RealFeatures:
    """A reference, read back."""

    about: ReferenceResult
    statistics: Statistics
    """Of all images."""
    kept: np.ndarray
    """(kept_features, D) float32, in the order of the source."""


def make_reference(
    config: Reference, listing: Listing, image_size: int, out: UPath, compute: Compute
) -> ReferenceResult:
    """Measure the real images of `listing`, cropped to `image_size`; leaves reference.npz and reference.json in `out`.

    The sums do not depend on the number of workers; an interrupted call goes on in `out`. Raises InputError when the
    extractor's weights are missing or fewer than two images can be used.
    """
    config.features.check()
    groups = _groups(listing, config.images)
    progress, found = Progress("reference", len(groups), "groups of shards"), None
    with connected(compute) as cluster:
        decoders = _decoders(cluster.generate)
        cores = cluster.generate.cpus
        work = _Work(replace(listing, shards=()), image_size, config.features, str(out), cores, decoders)
        for done, row in enumerate(_measured(work, groups, cluster.generate), 1):
            if row["images"]:
                part = _read_part(work.path(row["index"]))
                found = part if found is None else found + part
            progress.update(done, f", {config.features.name} features of {found.sums.count if found else 0} images")
    if found is None or found.sums.count < 2:
        raise InputError(
            f"image source {listing.root}: fewer than two of its images can be used as a reference; `mar tokenize` "
            "lists what is wrong with them"
        )
    result = ReferenceResult(
        images=found.sums.count, digest=listing.digest[:16], image_size=image_size, features=config.features,
        extractor_weights=weights_hash(config.features), kept_features=len(found.keys),
    )  # fmt: skip
    write_atomic(out / _SUMS, found.content())
    write_json(out / _ABOUT, canonical(result, identity=False))
    shutil.rmtree(str(out / _PARTS), ignore_errors=True)
    return result


def read_reference(folder: UPath) -> RealFeatures:
    """Read what `make_reference` left. Raises InputError naming the folder."""
    try:
        about = from_json((folder / _ABOUT).read_text(), ReferenceResult, str(folder / _ABOUT))
        part = _read_part(folder / _SUMS)
    except _UNREADABLE as error:
        raise InputError(f"reference {folder}: cannot be read ({error})") from None
    return RealFeatures(about, part.sums.statistics(), part.features)


@dataclass(frozen=True)
class _Part:
    """Sums of some images, and those of their features that drew the smallest keys: a uniform subset of any union."""

    sums: FeatureSums
    keys: np.ndarray
    features: np.ndarray

    def __add__(self, following: "_Part") -> "_Part":
        keys, features = (
            np.concatenate([getattr(self, name), getattr(following, name)]) for name in ("keys", "features")
        )
        if len(keys) > KEPT_FEATURES:
            smallest = np.sort(np.argpartition(keys, KEPT_FEATURES)[:KEPT_FEATURES])
            keys, features = keys[smallest], features[smallest]
        return _Part(self.sums + following.sums, keys, features)

    def content(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(
            buffer, count=self.sums.count, total=self.sums.total, outer=self.sums.outer, keys=self.keys,
            features=self.features,
        )  # fmt: skip
        return buffer.getvalue()


def _read_part(path: UPath) -> _Part:
    """Read a part; a file cut short raises one of _UNREADABLE, since each of its arrays has a checksum."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        sums = FeatureSums(int(saved["count"]), saved["total"], saved["outer"])
        return _Part(sums, saved["keys"], saved["features"])


@dataclass(frozen=True)
class _Work:
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
        return location(self.out) / _PARTS / f"{index:04d}.npz"


@dataclass(frozen=True)
class _Group:
    """Shards that one worker sums in their order: (place in the listing, shard, most images of it or 0 for all)."""

    index: int
    shards: tuple[tuple[int, Shard, int], ...]


def _groups(listing: Listing, images: int) -> list[_Group]:
    """Return the shards in at most _GROUPS groups, with as many images of each as make `images` in all."""
    each, rest = divmod(images, len(listing.shards))
    quotas = [each + (place < rest) for place in range(len(listing.shards))]
    chosen = [
        (place, shard, quotas[place]) for place, shard in enumerate(listing.shards) if quotas[place] or not images
    ]
    count = min(_GROUPS, len(chosen))
    bounds = [len(chosen) * index // count for index in range(count + 1)]
    return [_Group(index, tuple(chosen[bounds[index] : bounds[index + 1]])) for index in range(count)]


def _decoders(workers: Workers) -> int:
    """Return the tasks that decode for each worker: on all other cores beside a GPU, else on half of its own."""
    if not workers.gpus:
        return max(1, workers.cpus // 2)
    return max(1, min(_MOST_DECODERS, int(ray.cluster_resources().get("CPU", 1)) // workers.count - 1))


def _measured(work: _Work, groups: list[_Group], workers: Workers) -> Iterator[dict[str, Any]]:
    """Yield the row of each group, in their order, once its file is there."""
    cpus = 1 if workers.gpus else work.cores - work.decoders * work.decoder_cpus
    made = actors(_Measurer, work, count=min(workers.count, len(groups)), cpus=cpus, gpus=workers.gpus)
    return ActorPool(made).map(lambda worker, group: worker.__call__.remote(group), groups)


class _Measurer:
    """One worker: an extractor, and the tasks that decode for it."""

    def __init__(self, work: _Work) -> None:
        torch.set_num_threads(work.cores)
        self.work, self.extractor = work, Extractor(work.features)

    def __call__(self, group: _Group) -> dict[str, Any]:
        path = self.work.path(group.index)
        try:
            images = _read_part(path).sums.count
        except _UNREADABLE:
            part = self._measure(group)
            if part is not None:
                write_atomic(path, part.content())
            images = part.sums.count if part else 0
        return {"index": group.index, "images": images}

    def _measure(self, group: "_Group") -> _Part | None:
        """Return the part of a group, or None without a usable image."""
        part, keys, features = None, [], []
        for drawn, images in self._decoded(group):
            keys.append(drawn)
            features.append(self.extractor(images))
            if sum(map(len, keys)) >= _ROWS:
                part, keys, features = _added(part, keys, features), [], []
        return _added(part, keys, features) if keys else part

    def _decoded(self, group: "_Group") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield random keys and images of a group in the order of the source, while tasks decode what follows."""
        todo, decoding = iter(group.shards), deque[tuple[int, Any]]()
        decode: Any = ray.remote(cropped_images).options(
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
                images = ray.get(batch)
                yield random.random(len(images)), images


def _added(part: _Part | None, keys: list[np.ndarray], features: list[np.ndarray]) -> _Part:
    rows = np.concatenate(features)
    found = _Part(FeatureSums.of(rows), np.concatenate(keys), rows)
    return found if part is None else part + found
