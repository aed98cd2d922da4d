"""What reads for the encoders, and what the driver makes of their times. Needs neither Ray nor torch.

shard -> parts of up to PART_IMAGES decoded images (PartReader) -> staged moments, names and counts (PartEncoder)
"""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from infra.storage import storage_errors
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import crop_shard
from tokenize_jobs.sources.shard import Shard

PART_IMAGES = 256


class PartReader:
    """Reads, decodes and crops one shard; yields its parts as they fill."""

    def __init__(self, source: Listing, image_size: int) -> None:
        """Read shards of `source`, without which it travels to every task: a row brings its own."""
        self.source, self.image_size = replace(source, shards=()), image_size

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        index, shard = int(row["shard"]), pickle.loads(row["of"])
        try:
            yield from self._parts(index, shard)
        except storage_errors() as error:  # a row says it: Ray Data would wrap an exception in its own
            fault = f"{self.source.root}, shard {shard.name}: {error}"
            yield _Part(index, self.image_size).row(last=True, fault=fault)

    def _parts(self, index: int, shard: Shard) -> Iterator[dict[str, Any]]:
        part = _Part(index, self.image_size)
        for sample in crop_shard(self.source, shard, self.image_size):
            if sample.pixels is None:
                part.reject(sample.key, sample.fault)
                continue
            if len(part.keys) == PART_IMAGES:
                yield part.row(last=False)
                part = part.next()
            part.keys.append(sample.key)
            part.labels.append(sample.label)
            part.images.append(sample.pixels)
        yield part.row(last=True)


class _Part:
    def __init__(self, shard: int, size: int, index: int = 0) -> None:
        self.shard, self.size, self.index = shard, size, index
        self.keys: list[str] = []
        self.labels: list[int] = []
        self.images: list[np.ndarray] = []
        self.rejected: list[tuple[str, str]] = []

    def reject(self, key: str, reason: str) -> None:
        self.rejected.append((key, reason))

    def next(self) -> "_Part":
        return _Part(self.shard, self.size, self.index + 1)

    def row(self, *, last: bool, fault: str = "") -> dict[str, Any]:
        return {
            "fault": fault,
            "shard": self.shard,
            "index": self.index,
            "last": last,
            "keys": self.keys,
            "labels": self.labels,
            "images": b"".join(image.tobytes() for image in self.images),
            "size": self.size,
            "rejected_keys": [key for key, _ in self.rejected],
            "rejected_reasons": [reason for _, reason in self.rejected],
        }


class Rates:
    """What the progress line says of the encoders: images a second, and the share of the time they encode."""

    def __init__(self, encoders: int) -> None:
        self.encoders, self.images, self.rejected, self.busy = encoders, 0, 0, 0.0
        self.since = self.last = 0.0

    def add(self, part: dict[str, Any]) -> None:
        """Count a part; times are the encoders' own, from the start of the first part on."""
        self.images, self.rejected = self.images + part["rows"], self.rejected + len(part["rejected_keys"])
        self.busy += part["stopped"] - part["started"]
        self.since = min(self.since or part["started"], part["started"])
        self.last = max(self.last, part["stopped"])

    def measured(self) -> dict[str, float]:
        """Return images_per_second and encoders_busy, a share, once anything was encoded."""
        if not self.images:
            return {}
        wall = max(self.last - self.since, 1e-9)
        return {
            "images_per_second": round(self.images / wall, 2),
            "encoders_busy": round(self.busy / wall / self.encoders, 3),
        }

    def line(self) -> str:
        """Return the text to add to a progress line."""
        rates = self.measured()
        encoded = (
            f", {rates['images_per_second']} images/s, encoders {rates['encoders_busy']:.0%} busy" if rates else ""
        )
        return f", {self.images} images{encoded}, {self.rejected} quarantined"
