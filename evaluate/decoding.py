"""Shards -> batches of images, decoded by tasks on processors while a worker measures what came before."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from infra.cluster import Workers
from tokenize_jobs.sources.listing import Listing, Shard

_BATCHES_AHEAD, _MOST_DECODERS = 2, 16
_GROUPS = 64  # the sums of 2048 features are 34 MB, as large as 4,096 images' features: few are merged by the driver


@dataclass(frozen=True)
class Group:
    """Shards that one worker measures in their order: (place in the listing, shard, most images of it or 0 for all)."""

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


@dataclass(frozen=True)
class Decoding:
    """How the tasks of one worker decode a source."""

    listing: Listing
    """Without its shards."""
    image_size: int
    cores: int
    """Of the worker, its decoders among them where it has no GPU."""
    decoders: int
    """Tasks at once."""

    @classmethod
    def on(cls, workers: Workers, listing: Listing, image_size: int) -> "Decoding":
        """Return decoders for each worker: on all other cores beside a GPU, else on half of its own."""
        if not workers.gpus:
            return cls(listing, image_size, workers.cpus, max(1, workers.cpus // 2))
        cores = int(ray.cluster_resources().get("CPU", 1))
        return cls(listing, image_size, workers.cpus, max(1, min(_MOST_DECODERS, cores // workers.count - 1)))

    @property
    def decoder_cpus(self) -> float:
        """Cores of a decoding task: of a worker's only one, half."""
        return min(1.0, self.cores / 2)

    def worker_cpus(self, gpus: float) -> float:
        """Cores that the worker itself asks for."""
        return 1 if gpus else self.cores - self.decoders * self.decoder_cpus

    def batches(self, group: Group, decode: Callable[..., Iterator[Any]]) -> Iterator[tuple[int, Any]]:
        """Yield (place of the shard, batch) in the order of the source.

        Tasks run `decode(listing, shard, size, most)` ahead of what is yielded.
        """
        todo, decoding = iter(group.shards), deque[tuple[int, Any]]()
        task: Any = ray.remote(decode).options(
            num_cpus=self.decoder_cpus, num_returns="streaming", _generator_backpressure_num_objects=_BATCHES_AHEAD
        )
        while True:
            for place, shard, most in islice(todo, self.decoders - len(decoding)):
                decoding.append((place, task.remote(self.listing, shard, self.image_size, most)))
            if not decoding:
                return
            place, batches = decoding.popleft()
            for batch in batches:
                yield place, ray.get(batch)
