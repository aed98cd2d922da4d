"""Folders of Hugging Face's `datasets`, as `save_to_disk` leaves them: Arrow streams, data-00000-of-00004.arrow.

Columns are those of Parquet tables. A stream is read from its beginning: damage costs the rest of its file.
"""

import io
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from upath import UPath

from tokenize_jobs.sources.columns import (
    classes_in,
    image_and_label,
    own_names,
    raise_if_of_storage,
    to_sample,
    told_classes,
)
from tokenize_jobs.sources.shard import Layout, Sample, Shard, Wants, shard_a_file

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 64
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of a stream that was written to its end."""


def _takes(name: str) -> bool:
    """Tell whether a file is of the data; cache-*.arrow are the library's own notes of what it computed."""
    return name.lower().endswith(".arrow") and not posixpath.basename(name).startswith("cache-")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    return told_classes(root, files, label, _schema)


def _schema(file: BinaryIO) -> "pa.Schema":
    import pyarrow as pa  # takes a while, and a cached answer about other layouts needs none

    return pa.ipc.open_stream(file).schema


def _names(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    return classes_in(root, files, partial(_labels, label=label))


def _labels(file: BinaryIO, label: str) -> "Iterator[pa.Array]":
    for batch in _batches(file, lambda _: [label]):
        yield batch.column(0)


def _batches(file: BinaryIO, columns: "Callable[[pa.Schema], list[str]]") -> "Iterator[pa.RecordBatch]":
    """Yield the `columns` of a stream. Raises OSError, ValueError or MemoryError for any damage.

    Pyarrow reads offsets as they lie: they are looked at first.
    """
    import pyarrow as pa

    with pa.ipc.open_stream(file) as stream:
        wanted = columns(stream.schema)
        for batch in stream:
            found = batch.select(wanted)
            found.validate(full=True)
            yield found
    stop = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - len(_END)))
    if file.read() != _END or file.tell() != stop:
        raise ValueError("the stream has no end, or ends before the file does")


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:
    row = 0
    with (root / shard.files[0]).open("rb") as file:
        try:
            for batch in _batches(file, partial(image_and_label, label=label)):
                names = own_names(batch.schema, label)
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    for value in batch.slice(start, _BATCH_ROWS).to_pylist():
                        if wants(key := f"{row:06d}"):
                            yield to_sample(key, value[batch.schema.names[0]], value.get(label), names)
                        row += 1
        except (OSError, ValueError, MemoryError) as error:  # pyarrow's errors derive from these
            raise_if_of_storage(error)
            yield Sample(f"{row:06d}...", fault=f"the table cannot be read from here on: {error}"[:200])


ARROW = Layout("arrow", _takes, _classes, shard_a_file, _read, _names)
