"""The digest of a source: its names and sizes, and of what no storage has a checksum for, the first and last bytes.

Those of many files are read at once, and not again while names, sizes and times are the same.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from upath import UPath

from infra.console import Progress
from infra.storage import is_local, write_atomic

_SAMPLE_BYTES = 65536
_AT_ONCE, _MANY = 16, 256
T = TypeVar("T")
Infos = Mapping[str, Mapping[str, Any]]


def source_digest(root: UPath, infos: Infos, about: Sequence[object], *, is_sampled: bool) -> str:
    """Return the digest of files below `root`, `infos` being what is known of each, and of what else decides.

    `is_sampled` reads the ends of local files.
    """
    unread = [name for name, info in infos.items() if is_sampled and is_local(root) and not _checksum(info)]

    def digest() -> str:
        found, ends, asked = hashlib.sha256(json.dumps(about).encode()), _ends(root, unread, infos), set(unread)
        for name, info in infos.items():
            found.update(json.dumps([name, info["size"], _checksum(info)]).encode())
            if name in asked:
                found.update(next(ends))
        return found.hexdigest()

    return kept(root, infos, about, digest) if unread else digest()


def kept(root: UPath, infos: Infos, about: Sequence[object], find: Callable[[], T]) -> T:
    """Return what `find` tells `about` the files, as JSON has it; of many that are as before, what was told then."""
    path = _kept(root, infos, about) if len(infos) >= _MANY else None
    if path is not None and path.is_file():
        return json.loads(path.read_text())
    found = find()
    if path is not None:
        with suppress(OSError):  # a home that cannot be written: it is found again
            write_atomic(path, json.dumps(found).encode())
    return found


def _checksum(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")


def _ends(root: UPath, names: Sequence[str], infos: Infos) -> Iterator[bytes]:
    """Yield the first and last bytes of these files, in their order."""

    def read(name: str) -> bytes:
        with (root / name).open("rb") as file:
            first = file.read(_SAMPLE_BYTES)
            file.seek(max(0, int(infos[name]["size"]) - _SAMPLE_BYTES))
            return first + file.read(_SAMPLE_BYTES)

    progress = Progress("pictures", len(names), "shards looked at")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(names), _MANY):  # of so many the bytes fit in memory
            yield from pool.map(read, names[start : start + _MANY])
            if len(names) >= _MANY:
                progress.update(min(start + _MANY, len(names)))


def _kept(root: UPath, infos: Infos, about: Sequence[object]) -> Path:
    """Return the file that keeps what is told about just this listing."""
    listed = [[name, i["size"], i.get("mtime"), i.get("ino"), _checksum(i)] for name, i in infos.items()]
    key = hashlib.sha256(json.dumps([str(root), about, listed], default=str).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mar-pipeline" / "listings" / key
