"""Class folders, CLASS/NAME.jpg: the folders are the classes, in sorted order."""

from collections.abc import Iterator, Mapping, Sequence

from upath import UPath

from infra.errors import InputError
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants, readable

_SHARD_IMAGES = 1024


def _takes(name: str) -> bool:
    return "/" in name and name.lower().endswith(IMAGE_SUFFIXES)


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    """Return the folders' names. Raises InputError for two that are no UTF-8 and read alike."""
    folders = sorted({name.split("/")[0] for name in files})
    classes = {readable(folder): folder for folder in folders}
    if lost := set(folders) - set(classes.values()):
        raise InputError(
            f"image source {root}: the folder {min(lost)!r} is no UTF-8 and reads as another does, "
            f"{classes[readable(min(lost))]!r}; rename one of the two"
        )
    return tuple(sorted(classes))


def _shards(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:  # noqa: ARG001
    return striding(files, [labels.get(_class(name), -1) for name in files])


def _class(name: str) -> str:
    return readable(name.split("/")[0])


def striding(files: Sequence[str], labels: Sequence[int]) -> tuple[Shard, ...]:
    """Group image files into shards that mix classes, by a stride over the sorted names."""
    count = -(-len(files) // _SHARD_IMAGES)
    return tuple(
        Shard(f"folder-{number:06d}", tuple(files[number::count]), tuple(labels[number::count]))
        for number in range(count)
    )


def read_images(root: UPath, shard: Shard, wants: Wants, name: str) -> Iterator[Sample]:  # noqa: ARG001
    """Yield the wanted image files of a shard; their names are their keys."""
    for place, (file, label) in enumerate(zip(shard.files, shard.labels, strict=True)):
        if wants(key := readable(file)):
            content = (root / file).read_bytes()
            shard.require_size(place, root / file, len(content))
            yield Sample(key, content, label)


FOLDER = Layout("folder", _takes, _classes, _shards, read_images)
