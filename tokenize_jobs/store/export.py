"""A latent store for other programs: WebDataset shards, or the published code's cache of one npz an image.

    webdataset   SHARD.tar: ROW-KEY.moments.npy .moments_flip.npy .cls .json, read by `webdataset` with .decode()
    npz          CLASS/SHARD--ROW-KEY.npz, arrays moments and moments_flip, float32: what MAR's `main_cache.py` leaves

Shards are written side by side, each by one thread; every file appears whole.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from infra.console import Progress
from infra.storage import read_json, write_atomic, write_json
from tokenize_jobs.store.shards import MANIFEST, columns_of, to_values
from tokenize_jobs.tokens import TokenKind, read_kind

Format = Literal["webdataset", "npz"]
ABOUT = "latents.json"
"""Beside what was exported: the manifest, which has classes, latent_scale and tokenizer."""
_AT_ONCE = 8


@dataclass(frozen=True)
class _Row:
    place: int
    """In its shard."""
    key: str
    label: int
    values: Mapping[str, np.ndarray]
    """By the name of their column."""


def export(root: UPath, form: Format, to: UPath) -> int:
    """Write the published store at `root` below `to`; returns the number of images.

    Raises what the storages raise; a repeated call writes the same files again.
    """
    manifest = read_json(root / MANIFEST)
    kind, shards = read_kind(manifest["layout"]), manifest["shards"]
    folders, progress = class_folders(manifest["classes"]), Progress("latents", len(shards), "shards")

    def one(shard: Mapping[str, Any]) -> int:
        return _WRITERS[form](shard["name"], _rows(root / "shards" / f"{shard['name']}.parquet", kind), to, folders)

    images = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, count in enumerate(pool.map(one, shards), 1):
            images += count
            progress.update(done)
    write_json(to / ABOUT, {name: value for name, value in manifest.items() if name != "shards"})
    return images


def class_folders(classes: list[str]) -> list[str]:
    """Return a folder for each class, whose sorted order is that of the labels: readers number folders so."""
    names = [name.replace("/", "-") or "-" for name in classes]
    if names == sorted(set(names)):
        return names
    digits = len(str(len(names) - 1))
    return [f"{label:0{digits}d}-{name}" for label, name in enumerate(names)]


def _rows(path: UPath, kind: TokenKind) -> Iterator[_Row]:
    """Yield the rows of a shard, a row group in memory at a time."""
    place = 0
    with path.open("rb") as handle:
        file = pq.ParquetFile(handle)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            columns = {name: to_values(table[name], kind) for name in columns_of(kind)}
            for row, (key, label) in enumerate(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True)):
                yield _Row(place, key, label, {name: values[row] for name, values in columns.items()})
                place += 1


def _webdataset(name: str, rows: Iterator[_Row], to: UPath, folders: list[str]) -> int:  # noqa: ARG001
    """Write a shard as a tar: members of a sample share what stands before the first dot."""
    import webdataset

    count, buffer = 0, io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0, user="mar", group="mar") as tar:
        for row in rows:
            arrays = {f"{column}.npy": value for column, value in row.values.items()}
            key = f"{row.place:06d}-{row.key.replace('.', '_').replace('/', '-')}"
            tar.write({"__key__": key, "cls": row.label, "json": {"key": row.key, "label": row.label}, **arrays})
            count += 1
    write_atomic(to / f"{name}.tar", buffer.getvalue())
    return count


def _npz(name: str, rows: Iterator[_Row], to: UPath, folders: list[str]) -> int:
    """Write each image of a shard as a file."""
    count = 0
    for row in rows:
        buffer = io.BytesIO()
        single = {c: v.astype(np.float32) if v.dtype == np.float16 else v for c, v in row.values.items()}
        np.savez(buffer, **single)
        file = f"{name}--{row.place:06d}-{row.key.replace('/', '--')}.npz"  # by its row: `a/b` and `a--b` are two
        write_atomic(to / folders[row.label] / file, buffer.getvalue())
        count += 1
    return count


_WRITERS: Mapping[Format, Callable[[str, Iterator[_Row], UPath, list[str]], int]] = {
    "webdataset": _webdataset,
    "npz": _npz,
}
