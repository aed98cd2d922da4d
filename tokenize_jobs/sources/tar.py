"""The members of a tar that may be damaged: an invalid header costs what it describes, and nothing else.

A header is valid when its checksum is. After an invalid one the walk goes on at the next valid header, at whatever
offset: bytes may have been lost or inserted. `tarfile` parses the headers; it takes an invalid one for the end, which
is why the walk is not its. A header of the format before POSIX, without the word "ustar", is read where it is
expected, but not found again after damage.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tokenize_jobs.sources.shard import readable

_BLOCK = tarfile.BLOCKSIZE
_MAGIC, _MAGIC_AT = b"ustar", 257
_CHUNK = 1 << 20
_MOST_EXTENDED_BYTES = 1 << 20
MOST_BYTES = 1 << 29
"""A member that claims more is a fault, and not read into memory."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class Seekable(Protocol):
    """What a tar is read from: a file, or a part of one."""

    def seek(self, position: int, /) -> int:
        """Go to a position."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; fewer at the end."""


@dataclass(frozen=True)
class Member:
    """A regular file in the tar; `content` is None when it was not wanted, `fault` says why it cannot be used."""

    name: str
    content: bytes | None
    start: int
    """First byte of the content in the tar."""
    size: int
    fault: str = ""


@dataclass(frozen=True)
class Damage:
    """Bytes that describe nothing: whatever members lay there are lost."""

    reason: str


@dataclass(frozen=True)
class _Entry:
    at: int
    """First byte of its headers."""
    name: str
    is_file: bool
    start: int
    """First byte of the content."""
    size: int
    following: int
    """Where the next header is expected."""


def walk(file: Seekable, wanted: Callable[[str], bool]) -> Iterator[Member | Damage]:
    """Yield the regular files of a tar in their order, with the content of those whose name is wanted, and the damage.

    `file` must be able to seek. Raises what reading it raises.
    """
    at, held, content = 0, None, None
    while True:
        found = None if (is_cut := _holds_header(file, held, content)) else _entry(file, at)
        ended = found is None and not is_cut and _is_end(file, at)
        if is_damaged := found is None and not ended:
            found = _search(file, _search_start(held, at))
        if held is not None and held.is_file:
            yield _member(held, content, _fault(file, held, content, found) if is_damaged or ended else "")
        if is_damaged:
            go_on = "" if found is None else f"; read on at byte {found.at}"
            yield Damage(f"no valid header and no end of the archive at byte {at}{go_on}")
        if found is None:
            return
        held, at = found, found.following
        content = _read(file, held.start, held.size) if held.size <= MOST_BYTES and wanted(held.name) else None


def _read(file: Seekable, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _member(entry: _Entry, content: bytes | None, fault: str) -> Member:
    if entry.size > MOST_BYTES:
        fault = f"{entry.size} bytes are more than the {MOST_BYTES} that are read into memory"
    return Member(entry.name, content, entry.start, entry.size, fault)


def _entry(file: Seekable, at: int) -> _Entry | None:
    """Return the member whose header, with the extended headers before it, begins at `at`; None if none does."""
    extended, position = b"", at
    while True:
        block = _read(file, position, _BLOCK)
        info = _header(block)
        if info is None:
            return None
        if info.type not in _EXTENDED:
            break
        if info.size > _MOST_EXTENDED_BYTES - len(extended):
            return None
        length = _BLOCK + _padded(info.size)
        extended += _read(file, position, length)
        position += length
    if extended and (info := _extended(extended + block)) is None:
        return None
    has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    start, size = position + _BLOCK, info.size if has_content else 0
    return _Entry(at, readable(info.name), info.type in _FILES, start, size, start + _padded(size))


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None
    return info if info.size >= 0 else None


def _extended(blocks: bytes) -> tarfile.TarInfo | None:
    """Let `tarfile` apply pax and GNU headers to the header that ends `blocks`."""
    try:
        return tarfile.open(fileobj=io.BytesIO(blocks), mode="r:").firstmember
    except Exception:  # noqa: BLE001  its parsers raise anything on damaged bytes, and these lie in memory
        return None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _is_end(file: Seekable, at: int) -> bool:
    """Tell whether the file ends properly here: two blocks of zeros or more, and nothing else."""
    position = at
    while chunk := _read(file, position, _CHUNK):
        if chunk.count(0) != len(chunk):
            return False
        position += len(chunk)
    return position - at >= 2 * _BLOCK


def _search_start(held: _Entry | None, at: int) -> int:
    """Bytes may be missing from the content before, unless it is a tar itself, whose headers are not this one's."""
    return at if held is None or held.name.endswith(".tar") else held.start


def _search(file: Seekable, start: int) -> _Entry | None:
    """Return the first member whose header begins at `start` or later."""
    while len(window := _read(file, start, _CHUNK + _BLOCK)) >= _BLOCK:
        found = window.find(_MAGIC, _MAGIC_AT)
        while 0 <= found <= len(window) - (_BLOCK - _MAGIC_AT):
            first = found - _MAGIC_AT
            if _header(window[first : first + _BLOCK]) and (entry := _entry(file, start + first)):
                return entry
            found = window.find(_MAGIC, found + 1)
        start += len(window) - _BLOCK + 1
    return None


def _holds_header(file: Seekable, held: _Entry | None, content: bytes | None) -> bool:
    """Tell whether so many bytes of `content` are missing that the next member's first header lies in it."""
    if held is None or not content or _MAGIC not in content or held.name.endswith(".tar"):
        return False
    found = _search(file, held.start)
    return found is not None and found.at < held.start + held.size


def _fault(file: Seekable, held: _Entry, content: bytes | None, found: _Entry | None) -> str:
    """Return how a place without a header shows that the content before it is not what was written, or nothing."""
    end = held.start + held.size
    if found is not None and found.at < end:
        return "cut short: another header lies within it"
    if content is None:
        return ""
    if len(content) < held.size:
        return "the tar ends within it"
    more = 0 if found is None else found.at - held.following
    if more < 0:  # the padding made up for missing bytes
        return "" if content[more:].strip(b"\0") else "bytes of it are missing"
    follows = _read(file, end, 1) if held.following > end or 0 < more < _BLOCK else b"\0"
    return "other bytes came into it" if follows.strip(b"\0") else ""
