"""What tables of images have in common, Parquet's and Arrow's: the columns of images and labels, and their classes."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, BinaryIO

from upath import UPath

from infra.errors import InputError
from infra.storage import is_of_storage
from tokenize_jobs.sources.labels import MOST_CLASSES, NONE
from tokenize_jobs.sources.shard import Sample

if TYPE_CHECKING:  # takes a while to import, and a cached answer about other layouts needs none
    import pyarrow as pa

_IMAGES = ("image", "img")
_AT_ONCE, _LOOKED_AT = 16, 16


def told_classes(
    root: UPath, files: Sequence[str], label: str, schema_of: "Callable[[BinaryIO], pa.Schema]"
) -> tuple[str, ...]:
    """Return what the metadata of the first table tells, or of the next few where that one is damaged or tells nothing.

    Raises InputError when the first has no column of that name, or none of numbers or texts.
    """
    is_first = True
    for name in files[:_LOOKED_AT]:
        try:
            with (root / name).open("rb") as file:
                schema = schema_of(file)
            _ = schema.names  # of damaged text they are a ValueError
        except (OSError, ValueError, MemoryError) as error:  # damaged: its shard's reader says so
            raise_if_of_storage(error)
            continue
        if is_first:
            _require_labels(root / name, schema, label)
        if names := own_names(schema, label):
            return names
        is_first = False
    return ()


def _require_labels(path: UPath, schema: "pa.Schema", label: str) -> None:
    if label not in schema.names or not _holds_labels(schema.field(label).type):
        kinds = [name for name in schema.names if _holds_labels(schema.field(name).type)]
        fault = f"no column {label!r}; there are {', '.join(schema.names)}"
        if label in schema.names:
            fault = f"column {label!r} holds {schema.field(label).type}; a label is a number or a text"
        chosen = f"Choose with --images.label {get_close_matches(label, kinds, 1, 0)[0]}, or" if kinds else "Say"
        no_labels = "none" if kinds else "--images.label none"
        raise InputError(f"image source {path}: {fault}. {chosen} {no_labels} if the pictures have no labels.")


def own_names(schema: "pa.Schema", label: str) -> tuple[str, ...]:
    """Return the names of Hugging Face's ClassLabel, which its library writes into a schema's metadata."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(map(str, names))


def _holds_labels(kind: "pa.DataType") -> bool:
    from pyarrow import types

    of = kind.value_type if types.is_dictionary(kind) else kind
    return any(is_kind(of) for is_kind in (types.is_integer, types.is_string, types.is_large_string))


def classes_in(
    root: UPath, files: Sequence[str], labels_in: Callable[[BinaryIO], "Iterable[pa.Array | pa.ChunkedArray]"]
) -> tuple[str, ...]:
    """Return the sorted texts among the labels of all tables, or else the numbers up to the largest, if any.

    The tables are read at once; a damaged one's reader says so later.
    """

    def of_file(name: str) -> set[Any]:
        found = set[Any]()
        try:
            with (root / name).open("rb") as file:
                for labels in labels_in(file):
                    found.update(labels.unique().to_pylist())
        except (OSError, ValueError, KeyError, NotImplementedError, MemoryError) as error:
            raise_if_of_storage(error)
        return found

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = set[Any]().union(*pool.map(of_file, files))
    if texts := sorted(label for label in found if isinstance(label, str)):
        return tuple(texts)
    largest = max((label for label in found if isinstance(label, int)), default=-1)
    return tuple(map(str, range(largest + 1))) if largest < MOST_CLASSES else ()


def image_and_label(schema: "pa.Schema", label: str) -> list[str]:
    """Return the names of the columns to read, the images' first. Raises ValueError when one is missing."""
    image = next((name for name in _IMAGES if name in schema.names), _IMAGES[0])
    columns = [image] if label == NONE else [image, label]
    if missing := {*columns} - set(schema.names):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return columns


def to_sample(key: str, image: Any, label: Any, names: Sequence[str]) -> Sample:  # noqa: ANN401
    """Return a row: bytes or a struct with `bytes`, and its label; -1 for one that is neither number nor text.

    A number is that of the table's own `names`, where it has some: another table may have them in another order.
    """
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        return Sample(key, fault="no image bytes")
    if isinstance(label, bool) or not isinstance(label, int | str):
        return Sample(key, content)
    is_named = isinstance(label, int) and 0 <= label < len(names)
    return Sample(key, content, names[label] if is_named else label)


def raise_if_of_storage(error: Exception) -> None:
    """Raise what a storage said: what it could not read is not bad, and must not be lost."""
    if is_of_storage(error):
        raise error
