"""Shards of an image source -> (key, image bytes, label) of each sample; a fault never costs its neighbours.

A sample or a shard that is damaged is a fault to set aside. A storage that fails is not: it is raised, so that what
could not be read now is read by the next run.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from infra.storage import location
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.listing import IMAGE_SUFFIXES, Listing, Shard

_PARQUET_BATCH = 64


@dataclass(frozen=True)
class Sample:
    """One image as it lies in its shard; `fault` says why it cannot be used."""

    key: str
    content: bytes = b""
    label: int = -1
    fault: str = ""


def read_shard(manifest: Listing, shard: Shard) -> Iterator[Sample]:
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
    manifest: Listing, shard: Shard, size: int, most: int = 0, *, batch_size: int = 64
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
            _raise_if_of_storage(error)
            yield Sample(shard.name, fault=f"not a Parquet table of images: {error}"[:200])
            return
        first = 0
        for group in range(table.num_row_groups):
            row = first
            try:
                for batch in table.iter_batches(_PARQUET_BATCH, row_groups=[group], columns=["image", "label"]):
                    for value in batch.to_pylist():
                        yield _parquet_sample(f"{row:06d}", value["image"], value["label"])
                        row += 1
            except (OSError, ValueError) as error:
                _raise_if_of_storage(error)
                yield Sample(f"{row:06d}...", fault=f"the row group cannot be read from here on: {error}"[:200])
            first += table.metadata.row_group(group).num_rows


def _parquet_sample(key: str, image: Any, label: Any) -> Sample:  # noqa: ANN401
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        return Sample(key, fault="no image bytes")
    return Sample(key, content, label if isinstance(label, int) else -1)


def _raise_if_of_storage(error: Exception) -> None:
    """Raise what a file system said, which has a number: what it could not read is not bad, and must not be lost."""
    if getattr(error, "errno", None) is not None:
        raise error


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
    except (tarfile.TarError, EOFError) as error:  # what the storage says goes on to the caller: nothing is bad then
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
