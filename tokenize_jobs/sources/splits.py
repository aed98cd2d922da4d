"""Splits of a source, known by how its files are called.

train/CLASS/NAME.jpg, val/...                  folders, also below one folder that holds all; of tars and tables too
data/train-00000-of-00002.parquet, ...         a word in every file's name: Hugging Face's tables, tars side by side
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

TRAIN, HELDOUT, OTHER = "train", ("validation", "test"), "other"
_WORDS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_WORDS)})(?![a-z])")


@dataclass(frozen=True)
class Split:
    """The files of one split, named relative to `folder`, which is relative to the source's root."""

    folder: str
    files: tuple[str, ...]


def find_splits(files: Sequence[str], *, by_name: bool) -> dict[str, Split]:
    """Return the splits that sorted relative names tell of, at least two, and what is in none of them as "other".

    `by_name` takes words in the files' own names too: not so for single images.
    """
    return _folders(files) or (_names(files) if by_name else {})


def _folders(files: Sequence[str]) -> dict[str, Split]:
    above = posixpath.commonpath([posixpath.dirname(name) for name in files]) if files else ""
    start = len(above) + 1 if above else 0
    folders, found, others = dict[str, str](), dict[str, list[str]](), list[str]()
    for name in files:
        first, _, rest = name[start:].partition("/")
        split = _WORDS.get(first.lower(), "") if rest else ""
        if split and folders.setdefault(split, name[: start + len(first)]) == name[: start + len(first)]:
            found.setdefault(split, []).append(rest)
        else:
            others.append(name)
    return _told({split: Split(folders[split], tuple(names)) for split, names in found.items()}, others)


def _names(files: Sequence[str]) -> dict[str, Split]:
    found, others = dict[str, list[str]](), list[str]()
    for name in files:
        splits = {_WORDS[word] for word in _WORD.findall(posixpath.basename(name).lower())}
        (found.setdefault(splits.pop(), []) if len(splits) == 1 else others).append(name)
    return _told({split: Split("", tuple(names)) for split, names in found.items()}, others)


def _told(found: dict[str, Split], others: Sequence[str]) -> dict[str, Split]:
    if len(found) < 2:
        return {}
    return {**found, **({OTHER: Split("", tuple(others))} if others else {})}
