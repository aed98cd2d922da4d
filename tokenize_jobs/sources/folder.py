"""Class folders, CLASS/NAME.jpg: the folders are the classes, in sorted order."""

from collections.abc import Iterator, Mapping, Sequence

from upath import UPath

from infra.ahead import made_ahead
from infra.errors import InputError
from infra.storage import is_local
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout, Sample, Shard, Wants, readable

_SHARD_IMAGES, _AT_ONCE = 1024, 16


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
    """Yield the wanted image files of a shard in their order, remote ones read at once; their names are their keys."""
    wanted = [place for place, file in enumerate(shard.files) if wants(readable(file))]

    def read(number: int) -> Sample:
        place = wanted[number]
        path = root / shard.files[place]
        content = path.read_bytes()
        shard.require_size(place, path, len(content))
        return Sample(readable(shard.files[place]), content, shard.labels[place])

    at_once = 1 if is_local(root) else _AT_ONCE
    with made_ahead(read, range(len(wanted)), most=at_once, at_once=at_once) as samples:
        for _, sample in samples:
            yield sample


FOLDER = Layout("folder", _takes, _classes, _shards, read_images)
