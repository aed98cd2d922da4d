"""Image sources: WebDataset tar shards, class folders or Parquet tables -> a manifest of their shards.

The manifest's digest covers classes, names and sizes, and a sample of the content (or the object store's checksum), so
it takes seconds on millions of files; a file changed in place without changing its size, middle only, is not noticed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import where
from infra.storage import is_local, location

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FOLDER_SHARD_IMAGES = 1024
_SAMPLE_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The user's own labelled images."""

    kind: Literal["files"] = "files"
    """Labelled image files of your own."""
    path: str = where(default="")
    """Folder of tar shards, of Parquet files, or of class folders; local, s3://, gs://, ..."""
    heldout_path: str = where(default="")
    """The same for images never trained on: the floor of the evaluation. Without it, the last shard is kept back."""
    num_classes: int = 0
    """Labels are 0..num_classes-1; 0 takes the number of class folders, or of classes.tsv's lines."""


@dataclass(frozen=True)
class Shard:
    """A unit of reading, of committing and of loss: a tar file, a Parquet file, or a run of a folder's images."""

    name: str
    files: tuple[str, ...]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a source holds, without opening its images."""

    format: Literal["webdataset", "parquet", "folder"]
    root: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    digest: str
    total_bytes: int


def scan(path: str, num_classes: int = 0) -> Listing:
    """Return the manifest of the images below `path`.

    Raises InputError when the path is missing, unreadable or holds no images.
    """
    root = location(path)
    try:
        if not root.is_dir():
            raise InputError(f"image source {root}: no such folder. Give a folder of .tar, .parquet or class folders.")
        found = _find(root)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  fsspec filesystems raise their own exceptions
        raise InputError(f"image source {root}: cannot be read ({type(error).__name__}: {error})") from None
    suffixes = {PurePosixPath(name).suffix.lower() for name, _ in found}
    if ".tar" in suffixes:
        kind, chosen = "webdataset", [(n, i) for n, i in found if n.endswith(".tar")]
    elif ".parquet" in suffixes:
        kind, chosen = "parquet", [(n, i) for n, i in found if n.endswith(".parquet")]
    else:
        kind, chosen = "folder", [(n, i) for n, i in found if "/" in n and n.lower().endswith(IMAGE_SUFFIXES)]
    if not chosen:
        raise InputError(f"image source {root}: holds no .tar, no .parquet and no class folders with images.")
    classes = _class_names(root, kind, chosen, num_classes)
    shards = _folder_shards(chosen, classes) if kind == "folder" else tuple(
        Shard(name=name.rsplit(".", 1)[0].replace("/", "--"), files=(name,)) for name, _ in chosen
    )  # fmt: skip
    return Listing(
        format=kind, root=str(root), shards=shards, classes=classes,
        digest=_digest(root, kind, chosen, classes), total_bytes=sum(int(info["size"] or 0) for _, info in chosen),
    )  # fmt: skip


def _find(root: UPath) -> list[tuple[str, dict[str, Any]]]:
    """Return (relative name, info) of all files below `root`, sorted by name."""
    base = root.path.rstrip("/")
    listed = root.fs.find(base, detail=True)
    return sorted((name[len(base) + 1 :], info) for name, info in listed.items())


def _digest(root: UPath, kind: str, files: list[tuple[str, dict[str, Any]]], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([kind, classes]).encode())
    for name, info in files:
        checksum = str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
        digest.update(json.dumps([name, info["size"], checksum]).encode())
        if not checksum and kind != "folder" and is_local(root):
            with (root / name).open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, int(info["size"]) - _SAMPLE_BYTES))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _class_names(root: UPath, kind: str, files: list[tuple[str, Any]], num_classes: int) -> tuple[str, ...]:
    """Return class names: the folders', those of classes.tsv (index, name...), or numbers."""
    table = root / "classes.tsv"
    if kind == "folder":
        names = tuple(sorted({name.split("/")[0] for name, _ in files}))
    elif table.exists():
        rows = [line.split("\t") for line in table.read_text().splitlines() if line.strip()]
        names = tuple(row[-1] for row in rows if row[0].isdigit())
    elif num_classes:
        names = tuple(str(index) for index in range(num_classes))
    else:
        raise InputError(
            f"image source {root}: how many classes? Give num_classes, or put classes.tsv beside the shards."
        )
    if num_classes and num_classes != len(names):
        raise InputError(f"image source {root}: num_classes is {num_classes}, but {len(names)} classes were found.")
    return names


def _folder_shards(files: list[tuple[str, Any]], classes: tuple[str, ...]) -> tuple[Shard, ...]:
    """Group a folder's images into shards that mix classes, by a stride over the sorted names."""
    index = {name: label for label, name in enumerate(classes)}
    count = -(-len(files) // _FOLDER_SHARD_IMAGES)
    shards = []
    for number in range(count):
        names = tuple(name for name, _ in files[number::count])
        shards.append(Shard(f"folder-{number:06d}", names, tuple(index[name.split("/")[0]] for name in names)))
    return tuple(shards)
