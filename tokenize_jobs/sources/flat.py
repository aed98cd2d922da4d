"""Pictures without labels in one folder: one class, as an unconditional model has."""

from collections.abc import Mapping, Sequence

from upath import UPath

from tokenize_jobs.sources.folder import read_images, striding
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Shard


def _takes(name: str) -> bool:
    return "/" not in name and name.lower().endswith(IMAGE_SUFFIXES)


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    return ("image",)


def _shards(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:  # noqa: ARG001
    return striding(files, [0] * len(files))


FLAT = Layout("flat", _takes, _classes, _shards, read_images)
