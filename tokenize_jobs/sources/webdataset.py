"""WebDataset tars: members of a sample follow each other and share the name up to the first dot.

Only image, .cls and .json members are read; nothing is unpickled and nothing is written to disk.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import PurePosixPath

from upath import UPath

from infra.errors import InputError
from tokenize_jobs.sources.labels import NONE, OWN_LABELS
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants, shard_a_file
from tokenize_jobs.sources.tar import Damage, Member, Seekable, walk

_LOOKED_AT = 16


def _takes(name: str) -> bool:
    return name.endswith(".tar")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:
    """Return no names: the samples have them. Raises InputError when none of the first ones' .json has that field."""
    if label in (OWN_LABELS.name, NONE):
        return ()
    with (root / files[0]).open("rb") as file:
        groups = islice(_groups(file, lambda name: _split(name)[1] == ".json"), _LOOKED_AT)
        found = [_fields(members[".json"]) for _, members, _ in groups if ".json" in members]
    fields = sorted(set().union(*found))
    if found and label not in fields:
        nearest = get_close_matches(label, fields, 1, 0)
        raise InputError(
            f"image source {root / files[0]}: no field {label!r} in the .json of its first samples; there are "
            f"{', '.join(fields)}. Choose with --images.label{f' {nearest[0]}' if nearest else ''}."
        )
    return ()


def _fields(member: Member) -> set[str]:
    try:
        value = json.loads(member.content or b"")
    except (ValueError, RecursionError):  # damaged: its shard's reader says so
        return set()
    return set(value) if isinstance(value, dict) else set()


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:
    def is_read(name: str) -> bool:
        key, suffix = _split(name)
        return suffix in (*IMAGE_SUFFIXES, ".cls", ".json") and wants(key)

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
    """Return the class in .cls, or in the field `name` of .json (which img2dataset writes), or -1."""
    try:
        if ".cls" in members and name == "label":
            text = (members[".cls"].content or b"").decode().strip()
            return int(text) if text.isdecimal() or not text.isprintable() or not text else text
        value = json.loads(members[".json"].content or b"")[name]
    except (KeyError, ValueError, TypeError, RecursionError):
        return -1
    return value if isinstance(value, int | str) and not isinstance(value, bool) else -1


WEBDATASET = Layout("webdataset", _takes, _classes, shard_a_file, _read)
