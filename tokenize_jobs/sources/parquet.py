"""Parquet tables with a column `image` or `img`, bytes or a struct of bytes (Hugging Face), and a column of labels."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from typing import Any

from upath import UPath

from infra.errors import InputError
from infra.storage import is_of_storage
from tokenize_jobs.sources.labels import NONE
from tokenize_jobs.sources.shard import Layout, Sample, Shard, Wants, shard_a_file

_BATCH_ROWS, _AT_ONCE = 64, 16
_IMAGES = ("image", "img")


def _takes(name: str) -> bool:
    return name.endswith(".parquet")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    """Return the names of Hugging Face's ClassLabel, which its library writes into the schema's metadata.

    Raises InputError when the first table has no column of that name.
    """
    import pyarrow.parquet as pq  # takes a while, and a cached answer about other layouts needs none

    try:
        with (root / files[0]).open("rb") as file:
            schema = pq.ParquetFile(file).schema_arrow
    except (OSError, ValueError) as error:  # damaged: its shard's reader says so
        _raise_if_of_storage(error)
        return ()
    if label not in schema.names:
        nearest = get_close_matches(label, schema.names, 1, 0)
        raise InputError(
            f"image source {root / files[0]}: no column {label!r}; there are {', '.join(schema.names)}. Choose with "
            f"--images.label{f' {nearest[0]}' if nearest else ''}."
        )
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(map(str, names))


def _names_in(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    """Return the sorted texts in a column of all tables, read at once, or nothing where it holds numbers.

    A damaged table's reader says so later.
    """
    import pyarrow.parquet as pq

    def of_file(name: str) -> set[str]:
        try:
            with (root / name).open("rb") as file:
                column = pq.read_table(file, columns=[label])[label]
        except (OSError, ValueError, KeyError) as error:
            _raise_if_of_storage(error)
            return set()
        return {value for value in column.unique().to_pylist() if isinstance(value, str)}

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(sorted(set().union(*pool.map(of_file, files))))


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:
    import pyarrow.parquet as pq

    with (root / shard.files[0]).open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            image = next((name for name in _IMAGES if name in table.schema_arrow.names), _IMAGES[0])
            columns = [image] if label == NONE else [image, label]
            missing = {*columns} - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            _raise_if_of_storage(error)
            yield Sample(shard.name, fault=f"not a Parquet table of images: {error}"[:200])
            return
        first = 0
        for group in range(table.num_row_groups):
            row = first
            try:
                for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    for value in batch.to_pylist():
                        if wants(key := f"{row:06d}"):
                            yield _sample(key, value[image], value.get(label))
                        row += 1
            except (OSError, ValueError) as error:
                _raise_if_of_storage(error)
                yield Sample(f"{row:06d}...", fault=f"the row group cannot be read from here on: {error}"[:200])
            first += table.metadata.row_group(group).num_rows


def _sample(key: str, image: Any, label: Any) -> Sample:  # noqa: ANN401
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        return Sample(key, fault="no image bytes")
    return Sample(key, content, label if isinstance(label, int | str) and not isinstance(label, bool) else -1)


def _raise_if_of_storage(error: Exception) -> None:
    """Raise what a storage said: what it could not read is not bad, and must not be lost."""
    if is_of_storage(error):
        raise error


PARQUET = Layout("parquet", _takes, _classes, shard_a_file, _read, _names_in)
