"""Where a source's labels are: in its own files under a name, or in a table of key and label, CSV or TSV."""

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from infra.errors import InputError
from infra.storage import location

MOST_CLASSES = 100_000
"""Larger numbers are none of a class, as dates."""
_KEYS = {"key", "id", "image", "imageid", "imagename", "img", "file", "filename", "filepath", "name", "path"}
_MOST_DIGITS, _MOST_LABEL_DIGITS = 6, 18
_LABELS = {"label", "labels", "class", "classid", "classname", "category", "target"}
"""Words of a table's first line, above keys and above labels; whatever is between the words in them."""

NONE = "none"
"""Name of the label of pictures that have none, or whose labels are not asked for: one class."""


@dataclass(frozen=True)
class Labels:
    """How to find a sample's label: numbers from 0, or names of classes."""

    name: str = "label"
    """Member or field of .json in tars, or column of Parquet tables."""
    table: str = ""
    """Path of a table that has all labels, in place of the files' own; workers read it too."""

    def identity(self) -> list[str]:
        """Return what decides the labels beside the files: nothing where they are called 'label'."""
        if not self.table:
            return [] if self.name == "label" else [self.name]
        return [hashlib.sha256(location(self.table).read_bytes()).hexdigest()]

    def classes(self) -> tuple[str, ...]:
        """Return the names in the table, sorted; or numbers up to its largest."""
        found = set(_read(self.table).values())
        if all(label.isdecimal() for label in found):
            if (longest := max(found, key=len)) and len(longest) > _MOST_DIGITS:
                raise InputError(f"labels {self.table}: {longest[:20]!r} is no number of a class")
            return tuple(map(str, range(max(map(int, found)) + 1)))
        return tuple(sorted(found))

    def of(self, key: str, label: int | str, numbers: Mapping[str, int]) -> int | str:
        """Return the class's number for sample `key`, labelled `label` in its file; a name that is no class stays."""
        if self.name == NONE and not self.table:
            return 0
        if self.table:
            rows = _read(self.table)
            path = _path(key)
            names = (str(path), str(path.parent / path.stem), path.name, path.stem)
            label = next((rows[name] for name in names if name in rows), -1)
        if isinstance(label, str):
            return numbers[label] if label in numbers else int(label) if is_number(label) else label
        return label


def is_number(text: str) -> bool:
    """Tell whether a text is a whole number from 0; digits beyond any number of classes are none."""
    return text.isdecimal() and len(text) <= _MOST_LABEL_DIGITS


OWN_LABELS = Labels()


def _path(key: str) -> PurePosixPath:
    """Return a key as a path without './', in composed letters: some systems take those of file names apart."""
    return PurePosixPath(unicodedata.normalize("NFC", key))


def _rows(text: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and the words of each row."""
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",", strict=True
    )
    try:
        yield from ((rows.line_num, [word.strip() for word in row]) for row in rows if row)
    except csv.Error as error:
        raise InputError(f"labels {path}, line {rows.line_num}: cannot be read ({error})") from None


def _columns(words: list[str], path: str) -> tuple[int, int] | None:
    """Return the places of key and label by the words of a table's first line; None where it is a row.

    Raises InputError for more columns, none of which is called a label.
    """
    names = [re.sub(r"[\W_]", "", word.lower()) for word in words]
    label = next((place for place, name in enumerate(names) if name in _LABELS), None)
    key = next((place for place, name in enumerate(names) if name in _KEYS), None)
    if label is None and sum(map(bool, words)) > 2:
        raise InputError(f"labels {path}: which of {', '.join(words)} is the label? Name two columns key and label.")
    if label is None and key != 0:
        return None
    return int(label == 0) if key is None else key, 1 if label is None else label


@lru_cache(maxsize=2)
def _read(table: str) -> dict[str, str]:
    """Return the label of each key. Raises InputError naming a line that is no (key, label) or contradicts another."""
    path = location(table)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {path}: cannot be read ({error})") from None
    rows: dict[str, str] = {}
    columns = None
    for line, words in _rows(text, str(path)):
        if columns is None:
            found, columns = _columns(words, str(path)), (0, 1)
            if found is not None:
                columns = found
                continue
        key, label = (words[column] if column < len(words) else "" for column in columns)
        if not (key and label):
            raise InputError(f"labels {path}, line {line}: a key and a label are needed, not {words[0]!r}")
        key = str(_path(key))
        if rows.setdefault(key, label) != label:
            raise InputError(f"labels {path}, line {line}: {key!r} has two labels, {rows[key]!r} and {label!r}")
    if not rows:
        raise InputError(f"labels {path}: holds no labels")
    return rows
