"""Lines and tables that a person reads: the only file that prints."""

import sys
import time
from collections.abc import Iterable, Sequence


def say(text: str = "") -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def stage(name: str, text: str) -> None:
    """Print a line of the stage called `name`."""
    say(f"{name:>10} | {text}")


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """Return aligned columns under a header."""
    cells = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class Progress:
    """One line of progress every few seconds: '12/40 images, 3.1 images/s, 9 s left'."""

    def __init__(self, name: str, total: int, unit: str, every_seconds: float = 5.0) -> None:
        self.name, self.total, self.unit, self.every_seconds = name, total, unit, every_seconds
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def update(self, done: int, note: str = "") -> None:
        """Tell that `done` of the total are done; prints at most every `every_seconds`, and at the end."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if done < self.total and now - self._last < self.every_seconds:
            return
        self._last = now
        since, before = self._first
        rate = (done - before) / max(now - since, 1e-9)
        speed = f", {rate:.1f} {self.unit}/s" if done > before else ""
        left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 and done < self.total else ""
        stage(self.name, f"{done}/{self.total} {self.unit}{speed}{left}{note}")
