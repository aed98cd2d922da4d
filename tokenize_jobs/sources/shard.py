"""What a source is made of: shards of samples, in one of the layouts that have a file each here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from upath import UPath

from infra.errors import InputError

UNKNOWN = -1
"""Bytes of a file whose filesystem does not tell."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Wants = Callable[[str], bool]
"""Tells by its key whether a sample is asked for: others need not be read."""


@dataclass(frozen=True)
class Shard:
    """A unit of reading, of committing and of loss: a tar file, a Parquet file, or a run of a folder's images."""

    name: str
    files: tuple[str, ...]
    labels: tuple[int, ...] = ()
    span: tuple[int, int] = (0, 0)
    """First byte (or row of an array) and end in the file, for a shard that lies in a larger file."""
    sizes: tuple[int, ...] = ()
    """Bytes of each file when the source was listed."""

    def require_size(self, place: int, path: UPath, found: int) -> None:
        """Raise OSError when the file at `place` has another size than when it was listed."""
        if self.sizes and self.sizes[place] not in (UNKNOWN, found):
            raise OSError(
                f"{path}: changed since the source was listed: it had {self.sizes[place]} bytes, and has {found}"
            )


@dataclass(frozen=True)
class Sample:
    """One image as it lies in its shard; `fault` says why it cannot be used."""

    key: str
    content: bytes = b""
    label: int | str = -1
    """Number of its class, or its name; -1 for none."""
    fault: str = ""


@dataclass(frozen=True)
class Layout:
    """One way in which images and labels lie in files."""

    name: str
    """What a listing calls it."""
    takes: Callable[[str], bool]
    """Tells by its name, relative to the root, whether a file holds images in this layout."""
    classes: Callable[[UPath, Sequence[str], str], tuple[str, ...]]
    """(root, files, name of the label) -> names of the classes, as far as the files tell them."""
    shards: Callable[[UPath, Sequence[str], Mapping[str, int]], tuple[Shard, ...]]
    """(root, files, label of each class name) -> shards."""
    read: Callable[[UPath, Shard, Wants, str], Iterator[Sample]]
    """(root, shard, which are wanted, name of the label) -> samples that are wanted, and every fault.

    It raises what the storage raises.
    """
    names: Callable[[UPath, Sequence[str], str], tuple[str, ...]] = lambda root, files, label: ()  # noqa: ARG005
    """(root, files, name of the label) -> names of the classes that the labels tell, asked where nothing else does."""


def readable(name: str) -> str:
    """Return a name that can be stored: one that is no UTF-8 comes with surrogates, which no Parquet file takes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shard_a_file(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:  # noqa: ARG001
    """Return a shard for each file, named after it."""
    return tuple(Shard(readable(name.rsplit(".", 1)[0]).replace("/", "--"), (name,)) for name in files)


def check_names(root: UPath, shards: Sequence[Shard]) -> None:
    """Raise InputError for two shards of one name: the latents of one would take the place of the other's."""
    first: dict[str, Shard] = {}
    for shard in shards:
        if (other := first.setdefault(shard.name, shard)) is not shard:
            raise InputError(
                f"image source {root}: {other.files[0]} and {shard.files[0]} both hold a shard {shard.name!r}; name "
                "the files you mean, by a pattern"
            )
