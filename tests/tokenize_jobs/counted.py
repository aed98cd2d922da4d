"""What is asked of a filesystem, counted: files of memory:// are read by ranges of bytes, as an object store's are."""

from dataclasses import dataclass, field

from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile


@dataclass
class Counts:
    """What was asked for."""

    ranges: list[int] = field(default_factory=list)
    """Bytes of each range that was read of an open file."""
    looked_up: list[str] = field(default_factory=list)
    """Names whose size or kind was asked for."""


def counted(monkeypatch):
    """Return the counts of what memory:// is asked for from now on."""
    counts, write, info = Counts(), MemoryFileSystem._open, MemoryFileSystem.info

    class Ranges(AbstractBufferedFile):
        def _fetch_range(self, start, end):
            counts.ranges.append(end - start)
            return bytes(self.fs.store[self.path].getbuffer()[start:end])

    def opened(self, path, mode="rb", block_size=None, **options):
        if mode == "rb":
            return Ranges(self, path, mode, block_size or "default", **options)
        return write(self, path, mode, block_size=block_size, **options)

    def looked_up(self, path, **options):
        counts.looked_up.append(path)
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", opened)
    monkeypatch.setattr(MemoryFileSystem, "info", looked_up)
    return counts
