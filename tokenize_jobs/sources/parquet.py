"""Parquet tables with a column `image` or `img`, bytes or a struct of bytes (Hugging Face), and a column of labels."""

from collections.abc import Iterator, Sequence
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


def _takes(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    return told_classes(root, files, label, _schema)


def _schema(file: BinaryIO) -> "pa.Schema":
    import pyarrow.parquet as pq  # takes a while, and a cached answer about other layouts needs none

    return pq.ParquetFile(file).schema_arrow


def _names(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    return classes_in(root, files, partial(_labels, label=label))


def _labels(file: BinaryIO, label: str) -> "Iterator[pa.ChunkedArray]":
    import pyarrow.parquet as pq

    yield pq.read_table(file, columns=[label])[label]


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:
    import pyarrow.parquet as pq

    with (root / shard.files[0]).open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            columns, names = image_and_label(table.schema_arrow, label), own_names(table.schema_arrow, label)
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            raise_if_of_storage(error)
            yield Sample(shard.name, fault=f"not a Parquet table of images: {error}"[:200])
            return
        first = 0
        for group in range(table.num_row_groups):
            row = first
            try:
                for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    for value in batch.to_pylist():
                        if wants(key := f"{row:06d}"):
                            yield to_sample(key, value[columns[0]], value.get(label), names)
                        row += 1
            except (OSError, ValueError) as error:
                raise_if_of_storage(error)
                yield Sample(f"{row:06d}...", fault=f"the row group cannot be read from here on: {error}"[:200])
            first += table.metadata.row_group(group).num_rows


PARQUET = Layout("parquet", _takes, _classes, shard_a_file, _read, _names)
