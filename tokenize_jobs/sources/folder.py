"""Class folders, CLASS/NAME.jpg: the folders are the classes, in sorted order."""

from collections.abc import Iterator, Mapping, Sequence

from upath import UPath

from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants

_SHARD_IMAGES = 1024


def _takes(name: str) -> bool:
    return "/" in name and name.lower().endswith(IMAGE_SUFFIXES)


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    return tuple(sorted({name.split("/")[0] for name in files}))


def _shards(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:  # noqa: ARG001
    return striding(files, [labels.get(name.split("/")[0], -1) for name in files])


def striding(files: Sequence[str], labels: Sequence[int]) -> tuple[Shard, ...]:
    """Group image files into shards that mix classes, by a stride over the sorted names."""
    count = -(-len(files) // _SHARD_IMAGES)
    return tuple(
        Shard(f"folder-{number:06d}", tuple(files[number::count]), tuple(labels[number::count]))
        for number in range(count)
    )


def read_images(root: UPath, shard: Shard, wants: Wants, name: str) -> Iterator[Sample]:  # noqa: ARG001
    """Yield the wanted image files of a shard; their names are their keys."""
    for place, (key, label) in enumerate(zip(shard.files, shard.labels, strict=True)):
        if wants(key):
            content = (root / key).read_bytes()
            shard.require_size(place, root / key, len(content))
            yield Sample(key, content, label)


FOLDER = Layout("folder", _takes, _classes, _shards, read_images)
