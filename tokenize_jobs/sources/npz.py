"""Images in ADM's .npz: arr_0 uint8 (N, H, W, 3), and arr_1 (N,) whole numbers where they have labels.

Rows are read where they lie, never the whole array; nothing is unpickled. The reader of the last rows compares the
array's checksum.
"""

import errno
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image
from upath import UPath

from infra.errors import InputError
from infra.storage import is_local, is_of_storage
from tokenize_jobs.sources.shard import Layout, Sample, Shard, Wants, readable

IMAGES, _LABELS = "arr_0", "arr_1"
_ROWS, _CHUNK = 1024, 1 << 20


class _Damaged(Exception):
    """An archive that is not whole, or an array that is not what it should be."""


def arrays(path: UPath) -> set[str]:
    """Return the names of the arrays in a .npz. Raises InputError for another file."""
    try:
        with _archive(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _Damaged as error:
        raise InputError(f"{path}: not a .npz of arrays, or not whole ({error})") from None


@contextmanager
def _archive(path: UPath) -> Iterator[zipfile.ZipFile]:
    """Open a .npz. Raises _Damaged for what is wrong with its bytes, and what the storage raises."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _Damaged:
        raise
    except Exception as error:  # zipfile and zlib raise anything on damaged bytes, and seek to places that are none
        is_seek = is_local(path) and getattr(error, "errno", None) == errno.EINVAL  # to a place that is none
        if is_of_storage(error) and not is_seek:
            raise
        raise _Damaged(f"{type(error).__name__}: {error}"[:200]) from None


def _takes(name: str) -> bool:
    return name.lower().endswith(".npz")


def _classes(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    return ()


def _names(root: UPath, files: Sequence[str], label: str) -> tuple[str, ...]:  # noqa: ARG001
    """Return the numbers up to the largest label, where all files have labels."""
    found = [_checked(root / name)[1] for name in files]
    labelled = [int(labels.max()) for labels in found if labels is not None]
    return tuple(map(str, range(max(labelled) + 1))) if len(labelled) == len(found) else ()


def _shards(root: UPath, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Shard, ...]:  # noqa: ARG001
    """Return a shard for each run of rows. Raises InputError for a file without images, or with other labels."""
    found = []
    for name in files:
        images, stem = _checked(root / name)[0], readable(name[: -len(".npz")]).replace("/", "--")
        spans = [(start, min(start + _ROWS, images)) for start in range(0, images, _ROWS)]
        found += [Shard(f"{stem}-{span[0]:08d}", (name,), span=span) for span in spans]
    return tuple(found)


def _checked(path: UPath) -> tuple[int, np.ndarray | None]:
    """Return how many images there are, and their labels if they have any. Raises InputError for other arrays."""
    if IMAGES not in (held := arrays(path)):
        raise InputError(f"{path}: has no array {IMAGES} of images; there are {', '.join(sorted(held)) or 'none'}")
    try:
        with _archive(path) as archive:
            images = _shape(archive)[0]
            return images, _labels(archive, images) if _LABELS in held else None
    except _Damaged as error:
        raise InputError(f"{path}: {error}") from None


def _shape(archive: zipfile.ZipFile) -> tuple[int, ...]:
    with archive.open(f"{IMAGES}.npy") as array:
        shape, is_fortran, dtype = _header(array)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or is_fortran or not all(shape):
        raise _Damaged(f"{IMAGES} is {dtype} {shape}; images are uint8 (N, H, W, 3)")
    return shape


def _header(array: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return read[np.lib.format.read_magic(array)](array)


def _labels(archive: zipfile.ZipFile, images: int) -> np.ndarray:
    with archive.open(f"{_LABELS}.npy") as array:
        found = np.lib.format.read_array(array, allow_pickle=False)
        array.read()  # to its end, where its checksum is compared
    if found.shape != (images,) or not np.issubdtype(found.dtype, np.integer):
        raise _Damaged(f"{_LABELS} is {found.dtype} {found.shape}; labels are {images} whole numbers")
    return found


def _read(root: UPath, shard: Shard, wants: Wants, label: str) -> Iterator[Sample]:  # noqa: ARG001
    path, (row, stop) = root / shard.files[0], shard.span
    try:
        images, labels = _checked(path)
        for image in _rows(path, row, stop):
            if wants(key := f"{row:08d}"):
                yield Sample(key, _as_file(image), -1 if labels is None else int(labels[row]))
            row += 1
        if stop == images:
            _compare_checksum(path)
    except (InputError, _Damaged) as error:
        yield Sample(f"{row:08d}...", fault=f"the array cannot be read whole: {error}"[:200])


def _rows(path: UPath, start: int, stop: int) -> Iterator[np.ndarray]:
    with _archive(path) as archive:
        shape = _shape(archive)[1:]
        size = int(np.prod(shape))
        with archive.open(f"{IMAGES}.npy") as array:
            _header(array)
            array.seek(start * size, io.SEEK_CUR)
            for _ in range(start, stop):
                content = array.read(size)
                if len(content) < size:
                    raise _Damaged("it ends here")
                yield np.frombuffer(content, np.uint8).reshape(shape)


def _compare_checksum(path: UPath) -> None:
    """Read the array from its beginning. Raises _Damaged where it is not what was written."""
    with _archive(path) as archive, archive.open(f"{IMAGES}.npy") as array:
        while array.read(_CHUNK):
            pass


def _as_file(image: np.ndarray) -> bytes:
    """Return pixels as a file that every reader of samples takes; BMP costs a copy."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "bmp")
    return buffer.getvalue()


NPZ = Layout("npz", _takes, _classes, _shards, _read, _names)
