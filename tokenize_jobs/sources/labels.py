"""Where a source's labels are: in its own files under a name, or in a table of key and label, CSV or TSV."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from infra.errors import InputError
from infra.storage import location

MOST_CLASSES = 100_000
"""Larger numbers are none of a class, as dates."""
_KEYS = {
    "key", "id", "image", "image_id", "image_name", "img", "file", "file_name", "filename", "file_path", "filepath",
    "name", "path",
}  # fmt: skip
_MOST_DIGITS, _MOST_LABEL_DIGITS = 6, 18
_LABELS = {"label", "labels", "class", "class_id", "class_name", "category", "target"}
"""Words of a table's first line, above keys and above labels."""

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
            names = (key, PurePosixPath(key).name, PurePosixPath(key).stem)
            label = next((rows[name] for name in names if name in rows), -1)
        if isinstance(label, str):
            return numbers[label] if label in numbers else int(label) if is_number(label) else label
        return label


def is_number(text: str) -> bool:
    """Tell whether a text is a whole number from 0; digits beyond any number of classes are none."""
    return text.isdecimal() and len(text) <= _MOST_LABEL_DIGITS


OWN_LABELS = Labels()


def _rows(lines: list[str], delimiter: str, path: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=delimiter)
    except csv.Error as error:
        raise InputError(f"labels {path}: cannot be read ({error})") from None


@lru_cache(maxsize=2)
def _read(table: str) -> dict[str, str]:
    """Return the label of each key. Raises InputError naming a line that is no (key, label) or contradicts another."""
    path = location(table)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {path}: cannot be read ({error})") from None
    rows: dict[str, str] = {}
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    for number, row in enumerate(_rows(lines, delimiter, str(path)), 1):
        words = [word.strip() for word in row]
        if not row or (number == 1 and (words[0].lower() in _KEYS or (words[1:2] and words[1].lower() in _LABELS))):
            continue
        if len(row) < 2 or not words[1]:
            raise InputError(f"labels {path}, line {number}: a key and a label are needed, not {row[0]!r}")
        key, label = words[:2]
        if rows.setdefault(key, label) != label:
            raise InputError(f"labels {path}, line {number}: {key!r} has two labels, {rows[key]!r} and {label!r}")
    if not rows:
        raise InputError(f"labels {path}: holds no labels")
    return rows
