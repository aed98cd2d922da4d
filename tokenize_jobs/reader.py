"""Reads the latent store for training: random order by (seed, epoch), any number of workers, any position.

Position p of a run is image order(epoch)[p % N] of epoch p // N. Flip and posterior noise are drawn from the
stream of (seed, p), so a batch depends on its step alone. Local shards are mapped into memory; shards on an
object store are first copied to a local cache and checked.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from infra.errors import InputError
from infra.seeding import stream
from infra.storage import is_local, location, read_json, write_atomic
from tokenize_jobs.latents import MANIFEST, Layout, to_moments


@dataclass(frozen=True)
class Batch:
    """Images of one training step on one worker."""

    latents: np.ndarray
    """float32 (B, C, h, w), one draw from each posterior, scaled."""
    labels: np.ndarray
    """int64 (B,)."""


class LatentStore:
    """A published latent store, opened for reading."""

    def __init__(self, root: str | UPath, cache: Path | None = None) -> None:
        """Open the store at `root`; raises InputError when it has no manifest or a shard is damaged."""
        self.root = location(root) if isinstance(root, str) else root
        try:
            self.manifest: dict[str, Any] = read_json(self.root / MANIFEST)
        except FileNotFoundError:
            raise InputError(f"latents {self.root}: no {MANIFEST}; tokenize first, or give a finished store") from None
        self.layout = Layout(**self.manifest["layout"])
        self.latent_scale: float = self.manifest["latent_scale"]
        cache = cache or Path(tempfile.gettempdir()) / "mar-latents"
        paths = [_local_copy(self.root, shard, cache) for shard in self.manifest["shards"]]
        groups = [group for path in paths for group in _row_groups(path, self.layout)]
        self._moments = [(group.moments, group.moments_flip) for group in groups]
        self._starts = np.cumsum([0, *(len(group.labels) for group in groups)])
        self.labels = np.concatenate([group.labels for group in groups]).astype(np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def moments(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Return moments float16 (B, 2C or C, h, w) of the images `indices` (B,), mirrored where `flips` (B,)."""
        out = np.empty((len(indices), *self.layout.shape), np.float16)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        rows = indices - self._starts[groups]
        for position, (group, row, flip) in enumerate(zip(groups.tolist(), rows.tolist(), flips.tolist(), strict=True)):
            out[position] = self._moments[group][flip][row]
        return out

    def batch(self, seed: int, positions: range) -> Batch:
        """Return the images at these positions of the run with this seed."""
        epochs_offsets = [divmod(position, len(self)) for position in positions]
        indices = np.array([_epoch_order(seed, epoch, len(self))[offset] for epoch, offset in epochs_offsets])
        draws = [stream("posterior", seed, position) for position in positions]
        moments = self.moments(indices, np.array([random.integers(2) for random in draws]))
        latents = moments[:, : self.layout.channels].astype(np.float32)
        if not self.layout.deterministic:
            deviation = np.exp(0.5 * moments[:, self.layout.channels :].astype(np.float32).clip(-30, 20))
            noise = np.stack([random.standard_normal(latents.shape[1:], dtype=np.float32) for random in draws])
            latents += deviation * noise
        return Batch(latents * np.float32(self.latent_scale), self.labels[indices])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return stream("epoch", seed, epoch).permutation(count)


@dataclass(frozen=True)
class _RowGroup:
    labels: np.ndarray
    moments: np.ndarray
    moments_flip: np.ndarray


def _row_groups(path: Path, layout: Layout) -> list[_RowGroup]:
    """Map the moments of each row group of a Parquet shard: one plain page of required fixed-size values."""
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    groups = []
    for number in range(file.num_row_groups):
        meta = file.metadata.row_group(number)
        columns = [
            _map_page(path, meta.column(names.index(name)), meta.num_rows, layout)
            for name in ("moments", "moments_flip")
        ]
        if any(column is None for column in columns):  # written by other software: read it, do not map it
            table = file.read_row_group(number, ["moments", "moments_flip"])
            columns = [to_moments(table[name], layout) for name in ("moments", "moments_flip")]
        labels = file.read_row_group(number, ["label"])["label"].to_numpy()
        groups.append(_RowGroup(labels, *columns))
    return groups


def _map_page(path: Path, column: Any, rows: int, layout: Layout) -> np.ndarray | None:  # noqa: ANN401
    """Map the values at the end of an uncompressed column chunk, or return None if it is laid out otherwise."""
    header = column.total_compressed_size - rows * layout.bytes
    if column.compression != "UNCOMPRESSED" or column.has_dictionary_page or not 0 < header < 256:
        return None
    return np.memmap(path, np.float16, "r", column.data_page_offset + header, (rows, *layout.shape))


def _local_copy(root: UPath, shard: dict[str, Any], cache: Path) -> Path:
    """Return a local path of the shard, copying it from an object store into the cache if needed."""
    path = root / "shards" / f"{shard['name']}.parquet"
    if is_local(path):
        local = Path(str(path))
        if not local.is_file() or local.stat().st_size != shard["bytes"]:
            raise InputError(f"{local}: missing or not {shard['bytes']} bytes long; run `mar latents {root} --verify`")
        return local
    local = cache / f"{shard['sha256'][:16]}.parquet"
    if not local.exists():
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise InputError(f"{path}: its bytes differ from the manifest's sha256")
        write_atomic(local, content)
    return local
