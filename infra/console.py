"""Lines and tables that a person reads: the only file that prints."""

import io
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

_WINDOW_SECONDS = 60.0


class OutputClosed(Exception):
    """Nobody reads standard output any more, as behind `| head`."""


@contextmanager
def printing() -> Iterator[None]:
    """Flush what a block prints. Raises OutputClosed when nobody reads it any more.

    A file's name may be no UTF-8: what the output cannot encode is printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now: at the interpreter's exit it would be too late to end quietly
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise  # another pipe or socket
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputClosed from None


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


@contextmanager
def waiting(name: str, text: str, every_seconds: float = 10.0) -> Iterator[None]:
    """Say every few seconds that a block goes on: 'listing s3://b/all: 20 s'."""
    ended, since = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(every_seconds):
            stage(name, f"{text}: {time.monotonic() - since:.0f} s")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class Progress:
    """One line of progress every few seconds: '12/40 images, 3.1 images/s, 9 s left'.

    The rate is that of the last minute, of what was told here: a run that goes on at step 1000 starts there.
    """

    def __init__(
        self, name: str, total: int, unit: str, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.total, self.unit, self.every_seconds, self.clock = name, total, unit, every_seconds, clock
        self._points: list[tuple[float, int]] = []
        self._said = -math.inf

    def update(self, done: int, note: str = "") -> None:
        """Tell that `done` of the total are done; prints at most every `every_seconds`, and at the end."""
        now, points = self.clock(), self._points
        if points and done < points[-1][1]:  # steps after the last checkpoint are made again
            points.clear()
        if not points or done > points[-1][1]:
            points.append((now, done))
        while len(points) > 2 and points[1][0] <= now - _WINDOW_SECONDS:
            points.pop(0)
        if done < self.total and now - self._said < self.every_seconds:
            return
        self._said = now
        since, before = points[0]
        seconds = now - since
        rate = (done - before) / seconds if seconds >= 1 else 0.0  # lines come in bundles
        speed = f", {rate:{'.1f' if rate >= 1 else '.2g'}} {self.unit}/s" if rate else ""
        left = f", {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        stage(self.name, f"{done}/{self.total} {self.unit}{speed}{left}{note}")
