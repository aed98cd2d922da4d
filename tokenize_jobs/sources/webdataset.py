"""WebDataset tars: members of a sample follow each other and share the name up to the first dot.

Only images and the members that hold labels are read; nothing is unpickled and nothing is written to disk.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from itertools import islice
from pathlib import PurePosixPath

from upath import UPath

from infra.console import Progress
from infra.errors import InputError
from tokenize_jobs.sources.labels import MOST_CLASSES, NONE, OWN_LABELS, is_number
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants, shard_a_file
from tokenize_jobs.sources.tar import Damage, Member, Seekable, walk

_LOOKED_AT, _AT_ONCE = 16, 16
_HIDDEN = re.compile(r"(^|/)(\._|__MACOSX/)")
"""Members that a Mac puts before each file."""


def _takes(name: str) -> bool:
    return name.lower().endswith(".tar")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    """Return no names: the samples have them. Raises InputError when none of the first ones has such a label."""
    if label in (OWN_LABELS.name, NONE):
        return ()
    with (root / files[0]).open("rb") as file:
        groups = islice(_groups(file, lambda name: _split(name)[1] in {".txt", *_told_in(label)}), _LOOKED_AT)
        found = [
            _fields(member) if suffix == ".json" else {suffix[1:]}
            for _, of, _ in groups
            for suffix, member in of.items()
        ]
    fields = sorted(set().union(*found))
    if found and label not in fields:
        nearest = get_close_matches(label, fields, 1, 0)
        raise InputError(
            f"image source {root / files[0]}: no field {label!r} in the .json of its first samples and no member "
            f".{label}; there are {', '.join(fields)}. Choose with --images.label{f' {nearest[0]}' if nearest else ''}."
        )
    return ()


def _told_in(label: str) -> set[str]:
    """Return the suffixes of the members that can hold the label of this name."""
    return {".json", ".cls", f".{label}"}


def _names(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    """Return the texts among the labels of all shards, sorted; none where the first ones' first samples have no text.

    Raises InputError for more texts than there are classes anywhere.
    """
    if not any(_texts(root / name, label, _LOOKED_AT) for name in files[:_LOOKED_AT]):
        return ()
    found, progress = set[str](), Progress("pictures", len(files), "shards read for the names of classes")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, texts in enumerate(pool.map(lambda name: _texts(root / name, label), files), 1):
            found |= texts
            progress.update(done)
    if len(found) > MOST_CLASSES:
        raise InputError(
            f"image source {root}: {label!r} holds {len(found):,} texts, as {min(found)[:60]!r}: captions are no "
            "classes. Choose another --images.label, or none."
        )
    return tuple(sorted(found))


def _texts(path: UPath, label: str, most: int | None = None) -> set[str]:
    """Return the labels of the first `most` samples, or of all, that are no numbers."""
    with path.open("rb") as file:
        groups = islice(_groups(file, lambda name: _split(name)[1] in _told_in(label)), most)
        labels = {_label(members, label) for _, members, _ in groups}
    return {of for of in labels if isinstance(of, str) and not is_number(of)}


def _fields(member: Member) -> set[str]:
    try:
        value = json.loads(member.content or b"")
    except (ValueError, RecursionError):  # damaged: its shard's reader says so
        return set()
    return set(value) if isinstance(value, dict) else set()


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:
    def is_read(name: str) -> bool:
        key, suffix = _split(name)
        return suffix in {*IMAGE_SUFFIXES, *_told_in(label)} and wants(key)

    with (root / shard.files[0]).open("rb") as file:
        for key, members, damage in _groups(file, is_read):
            if key is not None and wants(key):
                yield _assemble(key, members, label)
                for suffix in _images(members)[1:]:
                    yield Sample(key, fault=f"duplicate id: a {suffix} beside another image of this name")
            for reason in damage:
                yield Sample(f"{key or ''}...", fault=reason)


def _groups(
    file: Seekable, is_read: Callable[[str], bool]
) -> Iterator[tuple[str | None, dict[str, Member], list[str]]]:
    """Yield (key, members that are read by suffix, damage in it or right after it) of each sample."""
    key, members, damage = None, dict[str, Member](), list[str]()
    for member in walk(file, is_read):
        if isinstance(member, Damage):
            damage.append(member.reason)
            continue
        if _HIDDEN.search(member.name):
            continue
        name, suffix = _split(member.name)
        if name != key or suffix in members:  # once more: another sample, which `read_shard` calls a duplicate
            yield key, members, damage
            key, members, damage = name, {}, []
        if is_read(member.name):
            members[suffix] = member
    yield key, members, damage


def _split(name: str) -> tuple[str, str]:
    """Return a member's key and its lower-case suffix, which begins at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), f".{suffix.lower()}"


def _assemble(key: str, members: dict[str, Member], label: str) -> Sample:
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        return Sample(key, fault="unsafe path in the tar")
    for suffix, member in members.items():
        if member.fault:
            return Sample(key, fault=f"{suffix} member is damaged: {member.fault}")
    if not (images := _images(members)):
        return Sample(key, fault="no image")
    return Sample(key, members[images[0]].content or b"", _label(members, label))


def _images(members: dict[str, Member]) -> list[str]:
    return [suffix for suffix in IMAGE_SUFFIXES if suffix in members]


def _label(members: dict[str, Member], name: str) -> int | str:
    """Return the class in .cls or the member called `name`, or in the field `name` of .json (img2dataset's), or -1."""
    told = members.get(".cls" if name == OWN_LABELS.name else f".{name}")
    try:
        if told is not None:
            text = (told.content or b"").decode().strip()
            is_whole = text.removeprefix("-").isdecimal()
            return int(text) if is_whole or not text.isprintable() or not text else text
        value = json.loads(members[".json"].content or b"")[name]
    except (KeyError, ValueError, TypeError, RecursionError):
        return -1
    if isinstance(value, float) and value.is_integer():  # what pandas makes of numbers beside missing ones
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else -1


WEBDATASET = Layout("webdataset", _takes, _classes, shard_a_file, _read, _names)
