"""A log of JSON lines that one process appends to and another follows: who works never waits for who reads.

Lines are only ever added. A run that goes on from a checkpoint repeats steps: the later line of a step is the one
that counts.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_SECONDS = 1.0


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line in one write; what a killed process left unfinished is ended first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")


def logged(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log in the order of their steps, without those that were made again after them."""
    lines: list[dict[str, Any]] = []
    for line in _new(path, 0)[0]:
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return lines


def _new(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines from byte `start` on, and where they end."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    end = content.rfind(b"\n") + 1
    return [line for raw in content[:end].splitlines() if (line := _parsed(raw)) is not None], start + end


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """Return a line; None where its process was killed while it wrote, or a disk has damaged it."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


@contextmanager
def following(path: Path, on_line: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `on_line` with each line that is added while the block runs; with all of them before it ends.

    What `on_line` raises ends the block, and is raised from it.
    """
    stop, failed = threading.Event(), list[BaseException]()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        at, last = start, False
        while not last:
            last = stop.wait(_POLL_SECONDS)
            lines, at = _new(path, at)
            for line in lines:
                on_line(line)

    def follow_and_tell() -> None:
        try:
            follow()
        except BaseException as error:  # noqa: BLE001  raised where the block ends
            failed.append(error)
            if not stop.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=follow_and_tell, name="follow-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if failed:
            raise failed[0] from None
