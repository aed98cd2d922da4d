"""Reads the latent store for training: random order by (seed, epoch), any number of workers, any position.

Position p of a run is image order(epoch)[p % N] of epoch p // N. Flip and posterior noise are drawn from the
stream of (seed, p), so a batch depends on its step alone. Images that a rule holds back are no images of the opened
store: they are left out here, the files hold all. Local shards are mapped into memory; of shards on an
object store the rows are fetched that a batch asks for (`remote_rows.py`).
"""

import copy
import io
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from infra.errors import InputError
from infra.seeding import stream
from infra.storage import is_local, location, open_without_read_ahead, read_json
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.store.mapped import mapped
from tokenize_jobs.store.remote_rows import RemoteRows, fetch
from tokenize_jobs.store.shards import MANIFEST, columns_of, to_values
from tokenize_jobs.tokens import TokenKind, read_kind

_OPENING = 16
"""Remote shards whose footers and labels are read at the same time."""


@dataclass(frozen=True)
class Batch:
    """Images of one training step on one worker."""

    latents: np.ndarray
    """float32 (B, C, h, w), as the kind of token draws them, scaled."""
    labels: np.ndarray
    """int64 (B,)."""


class LatentStore:
    """A published latent store, opened for reading."""

    def __init__(self, root: str | UPath, cache: Path | None = None, heldout: Heldout = NONE_HELD) -> None:
        """Open the store at `root` without the images that `heldout` holds.

        Raises InputError when it has no manifest, a shard is damaged, or every image is held back.
        """
        self.root = location(root) if isinstance(root, str) else root
        try:
            self.manifest: dict[str, Any] = read_json(self.root / MANIFEST)
        except FileNotFoundError:
            raise InputError(f"latents {self.root}: no {MANIFEST}; tokenize first, or give a finished store") from None
        self.kind = read_kind(self.manifest["layout"])
        self.latent_scale = self.kind.scale(self.manifest)
        cache = cache or Path(tempfile.gettempdir()) / "mar-latents"
        with ThreadPoolExecutor(_OPENING) as pool:
            shards = self.manifest["shards"]
            opened = pool.map(lambda shard: _row_groups(self.root, shard, self.kind, cache, heldout), shards)
            groups = [group for shard_groups in opened for group in shard_groups]
        self._values = [group.values for group in groups]
        self._starts = np.cumsum([0, *(len(group.labels) for group in groups)])
        self._labels = np.concatenate([group.labels for group in groups]).astype(np.int64)
        is_held = np.concatenate([group.is_held for group in groups])
        self._rows, self._held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
        self.labels, self.held_back = self._labels[self._rows], len(self._held)
        if not len(self.labels):
            raise InputError(
                f"latents {self.root}: all {self.held_back} images are held back; lower --images.heldout-share"
            )

    def held(self) -> "LatentStore":
        """Return the images that are left out here, as a store of their own: none where none is held back."""
        view = copy.copy(self)
        view._rows, view._held, view.labels, view.held_back = (
            self._held,
            self._rows,
            self._labels[self._held],
            len(self),
        )
        return view

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def stored(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Return what is stored (B, *kind.shape) of the images `indices` (B,), mirrored where `flips` (B,)."""
        out = np.empty((len(indices), *self.kind.shape), self.kind.dtype)
        stored = self._rows[indices]
        groups = np.searchsorted(self._starts, stored, side="right") - 1
        rows = stored - self._starts[groups]
        columns = [self._values[group][flip] for group, flip in zip(groups.tolist(), flips.tolist(), strict=True)]
        wanted = list(zip(columns, rows.tolist(), strict=True))
        fetch((column, row) for column, row in wanted if isinstance(column, RemoteRows))
        for position, (column, row) in enumerate(wanted):
            out[position] = column[row]
        return out

    def batch(self, seed: int, positions: range) -> Batch:
        """Return the images at these positions of the run with this seed."""
        epochs_offsets = [divmod(position, len(self)) for position in positions]
        indices = np.array([_epoch_order(seed, epoch, len(self))[offset] for epoch, offset in epochs_offsets])
        draws = [stream("posterior", seed, position) for position in positions]
        stored = self.stored(indices, np.array([random.integers(2) for random in draws]))
        return Batch(self.kind.draw(stored, draws) * np.float32(self.latent_scale), self.labels[indices])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return stream("epoch", seed, epoch).permutation(count)


@dataclass(frozen=True)
class _RowGroup:
    labels: np.ndarray
    is_held: np.ndarray
    values: Sequence[np.ndarray | RemoteRows]
    """Of the images, and of their mirror images."""


def _row_groups(root: UPath, shard: dict[str, Any], kind: TokenKind, cache: Path, heldout: Heldout) -> list[_RowGroup]:
    """Open a shard: labels read, values mapped or to be fetched, each one plain page of fixed-size values."""
    path = root / "shards" / f"{shard['name']}.parquet"
    groups = []
    with _opened(path, shard["bytes"]) as handle:
        whole, file = mapped(path) if is_local(path) else None, pq.ParquetFile(handle)
        names = file.schema_arrow.names
        if missing := [name for name in columns_of(kind) if name not in names]:
            raise InputError(
                f"{path}: has columns {', '.join(names)}, not {' and '.join(missing)}, where {kind.told()} would lie; "
                f"run `mar latents {root} --verify`"
            )
        for number in range(file.num_row_groups):
            meta = file.metadata.row_group(number)
            columns = []
            for name in columns_of(kind):
                offset = _plain_values(meta.column(names.index(name)), meta.num_rows, kind)
                if offset is None:  # written by other software: read it, do not map it
                    columns.append(to_values(file.read_row_group(number, [name])[name], kind))
                elif whole is not None:
                    page = whole[offset : offset + meta.num_rows * kind.bytes]
                    columns.append(page.view(kind.dtype).reshape(meta.num_rows, *kind.shape))
                else:
                    kept = cache / f"{shard['sha256'][:16]}.{number}.{name}"
                    columns.append(RemoteRows(path, offset, meta.num_rows, kind, kept))
            table = file.read_row_group(number, ["key", "label"] if heldout.share else ["label"])
            keys = table["key"].to_pylist() if heldout.share else []
            is_held = np.array([heldout.holds(shard["name"], key) for key in keys] or [False] * meta.num_rows, bool)
            groups.append(_RowGroup(table["label"].to_numpy(), is_held, columns))
    return groups


def _opened(path: UPath, size: int) -> BinaryIO:
    """Open a shard; its size is asked of the open file. Raises InputError when it is missing or of another size."""
    with suppress(FileNotFoundError):
        handle = open_without_read_ahead(path)
        if handle.seek(0, io.SEEK_END) == size:
            return handle
        handle.close()
    raise InputError(f"{path}: missing or not {size} bytes long; run `mar latents {path.parents[1]} --verify`")


def _plain_values(column: Any, rows: int, kind: TokenKind) -> int | None:  # noqa: ANN401
    """Return where the values at the end of an uncompressed column chunk begin, or None if it is laid out otherwise."""
    header = column.total_compressed_size - rows * kind.bytes
    if column.compression != "UNCOMPRESSED" or column.has_dictionary_page or not 0 < header < 256:
        return None
    return column.data_page_offset + header
