"""Who makes a step: a small file that its maker renews, so that a second maker is told, and a dead one's hold ends."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import is_local, storage_errors, write_json

HOLD = "running.json"
_RENEWED_EVERY_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 60.0
_TRIES, _BURIAL_SECONDS = 20, 0.02


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Who makes a step, and the last time it said so."""

    host: str
    pid: int
    since: float
    """Seconds since the epoch."""
    renewed: float
    """Seconds since the epoch."""

    @property
    def is_alive(self) -> bool:
        """Tell whether its process still runs: on this host by asking, elsewhere by when it last renewed the file."""
        if self.host == socket.gethostname() and not Path(f"/proc/{self.pid}").exists() and Path("/proc/self").exists():
            return False
        return time.time() - self.renewed < _DEAD_AFTER_SECONDS

    def __str__(self) -> str:
        """Say who and since when."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}"


def holder(folder: UPath) -> Hold | None:
    """Return the living process that makes the step in `folder`, or None."""
    try:
        found = from_json((folder / HOLD).read_text(), Hold, str(folder / HOLD))
    except (*storage_errors(), InputError):  # none, or one that is just being written
        return None
    return found if found.is_alive else None


@contextlib.contextmanager
def holding(folder: UPath, *, shared: bool = False) -> Iterator[None]:
    """Hold `folder` while a block runs. With `shared`, several may; the file names the last one.

    Raises InputError naming the holder when another living process has it.
    """
    since = time.time()

    def mine() -> Hold:
        return Hold(host=socket.gethostname(), pid=os.getpid(), since=since, renewed=time.time())

    if is_local(folder) and not shared:
        _take(folder, mine())
    else:
        write_json(folder / HOLD, canonical(mine()))
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWED_EVERY_SECONDS):
            with contextlib.suppress(*storage_errors()):  # a full disk is the step's to tell
                write_json(folder / HOLD, canonical(mine()))

    thread = threading.Thread(target=renew, name="hold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(*storage_errors()):
            (folder / HOLD).unlink(missing_ok=True)


def _take(folder: UPath, mine: Hold) -> None:
    """Write the file where none is, or where its process is dead; of several at once, one gets it."""
    path = Path(str(folder / HOLD))
    own = path.with_name(f"{HOLD}.{mine.host}.{mine.pid}.{threading.get_ident()}.tmp")
    write_json(own, canonical(mine))
    try:
        for _ in range(_TRIES):
            try:
                os.link(own, path)  # fails where it exists, on shared disks too
            except FileExistsError:
                if (other := holder(folder)) is not None:
                    raise InputError(_held(folder, other)) from None
                _bury(folder)
            else:
                return
        raise InputError(f"{folder}: several processes began to make it at once; run again")
    finally:
        own.unlink(missing_ok=True)


def _bury(folder: UPath) -> None:
    """Remove the file of a dead process: one at a time, or a second one would remove the first one's successor's."""
    path = Path(str(folder / HOLD))
    burying = path.with_name(f"{HOLD}.burying.tmp")
    try:
        burying.open("x").close()
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - burying.stat().st_mtime > _DEAD_AFTER_SECONDS:  # it died, too
                burying.unlink(missing_ok=True)
        time.sleep(_BURIAL_SECONDS)
        return
    try:
        if holder(folder) is None:
            path.unlink(missing_ok=True)
    finally:
        burying.unlink(missing_ok=True)


def _held(folder: UPath, other: Hold) -> str:
    return (
        f"{folder}: is being made by {other}. Wait for it, or stop it; the hold of a dead process ends by itself, "
        f"{_DEAD_AFTER_SECONDS:.0f} s after its last sign where it ran on another host."
    )
