"""Follows the log that a worker appends to, from another process: workers never wait for whoever reads it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_SECONDS = 1.0


@contextmanager
def following(path: Path, on_line: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `on_line` with each JSON line of `path`, old and new, while the block runs; all of them before it ends."""
    stop = threading.Event()

    def follow() -> None:
        seen, last = 0, False
        while not last:
            last = stop.wait(_POLL_SECONDS)
            content = path.read_bytes() if path.exists() else b""
            seen = min(seen, len(content))  # the worker drops lines when it resumes
            end = content.rfind(b"\n") + 1
            for line in content[seen:end].splitlines():
                on_line(json.loads(line))
            seen = max(seen, end)

    thread = threading.Thread(target=follow, name="follow-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
