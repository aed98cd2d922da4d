"""Rows of shards on an object store: fetched the first time they are asked for, then kept in a sparse local file.

Processes of one machine share the files: a row is written before its flag, and always with the same bytes.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from upath import UPath

from infra.errors import InputError
from tokenize_jobs.store.mapped import mapped
from tokenize_jobs.tokens import TokenKind


class RemoteRows:
    """The values (rows, *kind.shape) of a remote row group; only fetched rows hold their values."""

    def __init__(self, remote: UPath, offset: int, rows: int, kind: TokenKind, kept: Path) -> None:
        """Stand for `rows` consecutive rows from byte `offset` of `remote`, kept in the file `kept`."""
        self.remote, self.offset, self.row_bytes, self.kept = remote, offset, kind.bytes, kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with kept.open("ab") as file:
            file.truncate(rows * (kind.bytes + 1))  # sparse: the values, then a flag for each row
        whole = mapped(kept, shared=True)
        self._values = whole[: rows * kind.bytes].view(kind.dtype).reshape(rows, *kind.shape)
        self._fetched = whole[rows * kind.bytes :]

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the values of a fetched row."""
        return self._values[row]

    def has(self, row: int) -> bool:
        """Tell whether the row was fetched before, by any process."""
        return bool(self._fetched[row])

    def keep(self, row: int, content: bytes) -> None:
        """Write a row's values, then its flag. A full disk is an InputError, not the bus error of a mapped write."""
        try:
            with self.kept.open("r+b", buffering=0) as file:
                for position, data in (
                    (row * self.row_bytes, content),
                    (len(self._values) * self.row_bytes + row, b"\1"),
                ):
                    file.seek(position)
                    if file.write(data) != len(data):
                        raise OSError("the disk is full")
        except OSError as error:
            raise InputError(
                f"{self.kept}: fetched latents cannot be kept ({error}); make room, or set TMPDIR"
            ) from None


def fetch(wanted: Iterable[tuple[RemoteRows, int]]) -> None:
    """Fetch the rows not fetched before, all at once. Raises InputError when a shard ends too early."""
    missing = [(rows, row) for rows, row in wanted if not rows.has(row)]
    if not missing:
        return
    starts = [rows.offset + row * rows.row_bytes for rows, row in missing]
    stops = [start + rows.row_bytes for start, (rows, _) in zip(starts, missing, strict=True)]
    paths = [rows.remote.path for rows, _ in missing]
    contents = missing[0][0].remote.fs.cat_ranges(paths, starts, stops, on_error="raise")
    for (rows, row), content in zip(missing, contents, strict=True):
        if len(content) != rows.row_bytes:
            raise InputError(f"{rows.remote}: ends before the manifest says; run `mar latents --verify` on the store")
        rows.keep(row, content)
