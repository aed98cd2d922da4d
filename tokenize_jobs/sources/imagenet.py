"""ILSVRC2012_img_train.tar as it is downloaded: a tar of 1,000 tars, each a class and a shard, read in place by offset.

The classes are the WordNet ids, n01440764 first: the labels of every published ImageNet model.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import BinaryIO

from upath import UPath

from infra.errors import InputError
from infra.storage import location, open_without_read_ahead
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants
from tokenize_jobs.sources.tar import Damage, Member, walk

_NAME = re.compile(r"ILSVRC2012_img_train(_t3)?\.tar")


class Slice:
    """Bytes [start, stop) of a file, as a file of their own that can be read and sought."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file, self.start, self.stop, self.at = file, start, stop, start

    def seek(self, position: int) -> int:
        """Go to a position in the slice."""
        self.at = self.start + position
        return position

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, none beyond the slice's end."""
        self.file.seek(self.at)
        content = self.file.read(max(0, min(size, self.stop - self.at)))
        self.at += len(content)
        return content


def spoken(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes for a person: ImageNet's 1,000 WordNet ids with the names that torchvision has of them."""
    is_imagenet = len(classes) == 1000 and (classes[0], classes[-1]) == ("n01440764", "n15075141")
    if not is_imagenet or list(classes) != sorted(classes):
        return tuple(classes)
    from torchvision.models import ResNet18_Weights  # seconds to import

    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(f"{number} {name}" for number, name in zip(classes, names, strict=True))


def _takes(name: str) -> bool:
    return bool(_NAME.fullmatch(posixpath.basename(name)))


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    return tuple(sorted({shard.name for name in files for shard in _class_tars(str(root), name)}))


def _shards(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:
    return tuple(
        Shard(shard.name, shard.files, (labels[shard.name],), shard.span)
        for name in files
        for shard in _class_tars(str(root), name)
    )


@lru_cache(maxsize=4)
def _class_tars(root: str, name: str) -> tuple[Shard, ...]:
    """Return where each class lies. Raises InputError for a damaged download: a class more or less is no ImageNet."""
    path = location(root) / name
    found = []
    with open_without_read_ahead(path) as file:  # headers lie 138 MB apart
        for member in walk(file, lambda _: False):
            if isinstance(member, Damage):
                raise InputError(f"image source {path}: damaged, download it again ({member.reason})")
            if member.name.endswith(".tar"):
                span = (member.start, member.start + member.size)
                found.append(Shard(posixpath.basename(member.name)[: -len(".tar")], (name,), span=span))
    return tuple(found)


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:  # noqa: ARG001
    def is_read(name: str) -> bool:
        return name.lower().endswith(IMAGE_SUFFIXES) and wants(_key(name))

    with (root / shard.files[0]).open("rb") as file:
        key = ""
        for member in walk(Slice(file, *shard.span), is_read):
            if isinstance(member, Member):
                key = _key(member.name)
                if is_read(member.name):
                    yield Sample(key, member.content or b"", shard.labels[0], member.fault)
            else:
                yield Sample(f"{key}...", fault=member.reason)


def _key(name: str) -> str:
    return posixpath.basename(name).rsplit(".", 1)[0]


IMAGENET = Layout("imagenet", _takes, _classes, _shards, _read)
