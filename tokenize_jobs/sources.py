"""Image sources: WebDataset tar shards, class folders, Parquet tables -> (key, image bytes, label), shard by shard.

A manifest of the source is made first. Its digest covers names and sizes, and a sample of the content (or
the object store's own checksum), so it takes seconds on millions of files; a file changed in place without
changing its size, middle only, is not noticed.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from infra.errors import InputError
from infra.fingerprint import where
from infra.storage import is_local, location
from tokenize_jobs.crop import BadImage, centre_crop, decode

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FOLDER_SHARD_IMAGES = 1024
_SAMPLE_BYTES = 65536
_PARQUET_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The user's own labelled images."""

    kind: Literal["files"] = "files"
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
class Manifest:
    """What a source holds, without opening its images."""

    format: Literal["webdataset", "parquet", "folder"]
    root: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    digest: str
    total_bytes: int


@dataclass(frozen=True)
class Sample:
    """One image as it lies in its shard; `fault` says why it cannot be used."""

    key: str
    content: bytes = b""
    label: int = -1
    fault: str = ""


def scan(path: str, num_classes: int = 0) -> Manifest:
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
    return Manifest(
        format=kind, root=str(root), shards=shards, classes=classes,
        digest=_digest(root, kind, chosen), total_bytes=sum(int(info["size"] or 0) for _, info in chosen),
    )  # fmt: skip


def read_shard(manifest: Manifest, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard in their order; a fault never costs its neighbours."""
    reader = {"webdataset": _read_tar, "parquet": _read_parquet, "folder": _read_folder}[manifest.format]
    seen: set[str] = set()
    for sample in reader(location(manifest.root), shard):
        fault = sample.fault
        if not fault and sample.key in seen:
            fault = "duplicate id"
        elif not fault and not 0 <= sample.label < max(len(manifest.classes), 1):
            fault = (
                f"label {sample.label} is not in 0..{len(manifest.classes) - 1}" if sample.label >= 0 else "no label"
            )
        seen.add(sample.key)
        yield Sample(sample.key, fault=fault) if fault else sample


def cropped_images(
    manifest: Manifest, shard: Shard, size: int, most: int = 0, *, batch_size: int = 64
) -> Iterator[np.ndarray]:
    """Yield a shard's images uint8 (n, size, size, 3), up to `most` unless it is 0; bad ones are passed over."""
    batch: list[np.ndarray] = []
    seen = 0
    for sample in read_shard(manifest, shard):
        if sample.fault:
            continue
        try:
            batch.append(centre_crop(decode(sample.content), size))
        except BadImage:
            continue
        seen += 1
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
        if seen == most:
            break
    if batch:
        yield np.stack(batch)


def _find(root: UPath) -> list[tuple[str, dict[str, Any]]]:
    """Return (relative name, info) of all files below `root`, sorted by name."""
    base = root.path.rstrip("/")
    listed = root.fs.find(base, detail=True)
    return sorted((name[len(base) + 1 :], info) for name, info in listed.items())


def _digest(root: UPath, kind: str, files: list[tuple[str, dict[str, Any]]]) -> str:
    digest = hashlib.sha256(kind.encode())
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


def _read_folder(root: UPath, shard: Shard) -> Iterator[Sample]:
    for name, label in zip(shard.files, shard.labels, strict=True):
        yield Sample(name, (root / name).read_bytes(), label)


def _read_parquet(root: UPath, shard: Shard) -> Iterator[Sample]:
    """Read columns `image` (bytes, or a struct with bytes, as Hugging Face stores them) and `label`."""
    with (root / shard.files[0]).open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            missing = {"image", "label"} - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            yield Sample(shard.name, fault=f"not a Parquet table of images: {error}"[:200])
            return
        row = 0
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=["image", "label"]):
            for value in batch.to_pylist():
                image, label = value["image"], value["label"]
                content = image.get("bytes") if isinstance(image, dict) else image
                key = f"{row:06d}"
                row += 1
                if not isinstance(content, bytes):
                    yield Sample(key, fault="no image bytes")
                else:
                    yield Sample(key, content, label if isinstance(label, int) else -1)


def _read_tar(root: UPath, shard: Shard) -> Iterator[Sample]:
    """Read a WebDataset tar as a stream: members of a sample follow each other and share the name up to the first dot.

    Only image, .cls and .json members are read; nothing is unpickled and nothing is written to disk.
    """
    key, members = None, {}
    try:
        with (root / shard.files[0]).open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                name, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
                if name != key and key is not None:
                    yield _assemble(key, members)
                    members = {}
                key = name
                if suffix in (*IMAGE_SUFFIXES, ".cls", ".json"):
                    content = tar.extractfile(member)
                    members[suffix] = content.read() if content else b""
            if key is not None:
                yield _assemble(key, members)
    except (tarfile.TarError, EOFError, OSError) as error:
        if key is not None and "unexpected end" not in str(error):
            yield _assemble(key, members)
        yield Sample(f"{key or ''}...", fault=f"the tar ends here: {type(error).__name__}: {error}"[:200])


def _assemble(key: str, members: dict[str, bytes]) -> Sample:
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        return Sample(key, fault="unsafe path in the tar")
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        return Sample(key, fault="no image")
    return Sample(key, image, _label(members))


def _label(members: dict[str, bytes]) -> int:
    """Return the class in .cls, or in the field 'label' of .json, or -1."""
    try:
        value = int(members[".cls"]) if ".cls" in members else json.loads(members[".json"])["label"]
    except (KeyError, ValueError, TypeError):
        return -1
    return value if isinstance(value, int) else -1
