"""Who makes a step: a small file that its maker renews, so that a second maker is told, and a dead one's hold ends."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import is_local, storage_errors, write_json

HOLD = "running.json"
_RENEWED_EVERY_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 60.0
_WRITTEN_WITHIN_SECONDS = 1.0
_TRIES, _BURIAL_SECONDS = 100, 0.02


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Who makes a step, and the last time it said so."""

    host: str
    pid: int
    since: float
    """Seconds since the epoch."""
    renewed: float
    """Seconds since the epoch."""
    namespace: str = ""
    """Of its process number: containers on one host have several."""

    @property
    def is_alive(self) -> bool:
        """Tell whether its process still runs: on this host by asking, elsewhere by when it last renewed the file."""
        is_here = (self.host, self.namespace) == (socket.gethostname(), _namespace())
        if is_here and not Path(f"/proc/{self.pid}").exists() and Path("/proc/self").exists():
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

    Raises InputError naming the holder when another living process has it, or has taken it over while this one stood
    still: the block is interrupted then.
    """
    since, lost = time.time(), list[Hold]()

    def mine() -> Hold:
        return Hold(
            host=socket.gethostname(), pid=os.getpid(), since=since, renewed=time.time(), namespace=_namespace()
        )

    if is_local(folder) and not shared:
        _take(folder, mine())
    else:
        write_json(folder / HOLD, canonical(mine()))
    stop = threading.Event()

    def another() -> Hold | None:
        other = None if shared else holder(folder)
        return None if other is None or replace(other, renewed=0) == replace(mine(), renewed=0) else other

    def renew() -> None:
        while not stop.wait(_RENEWED_EVERY_SECONDS):
            if (other := another()) is not None:
                lost.append(other)
                os.kill(os.getpid(), signal.SIGINT)
                return
            with contextlib.suppress(*storage_errors()):  # a full disk is the step's to tell
                write_json(folder / HOLD, canonical(mine()))

    thread = threading.Thread(target=renew, name="hold", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost:
            raise InputError(f"{folder}: this process stood still, and was taken for dead by {lost[0]}") from None
        raise
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(*storage_errors()):
            if another() is None:
                (folder / HOLD).unlink(missing_ok=True)


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _take(folder: UPath, mine: Hold) -> None:
    """Write the file where none is, or where its process is dead; of several at once, one gets it."""
    path = Path(str(folder / HOLD))
    own = path.with_name(f"{HOLD}.{mine.host}.{mine.pid}.{threading.get_ident()}.tmp")
    write_json(own, canonical(mine))
    try:
        for _ in range(_TRIES):
            try:
                _name(own, path)
            except FileExistsError:
                if (other := holder(folder)) is not None:
                    raise InputError(_held(folder, other)) from None
                _bury(folder)
                time.sleep(_BURIAL_SECONDS)
            else:
                return
        raise InputError(f"{folder}: several processes began to make it at once; run again")
    finally:
        own.unlink(missing_ok=True)


def _name(own: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError where that is taken, on shared disks too."""
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:  # a filesystem without links
        with path.open("x") as file:
            file.write(own.read_text())


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
        return
    try:
        if _is_dead(folder, path):
            path.unlink(missing_ok=True)
    finally:
        burying.unlink(missing_ok=True)


def _is_dead(folder: UPath, path: Path) -> bool:
    """Tell whether a file is there and a dead process's. One that is gone is not: the next moment it is another's."""
    try:
        return not from_json(path.read_text(), Hold, str(folder / HOLD)).is_alive
    except FileNotFoundError:
        return False
    except InputError:  # damaged, or just being written where a filesystem has no links
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime > _WRITTEN_WITHIN_SECONDS
        return False


def _held(folder: UPath, other: Hold) -> str:
    return (
        f"{folder}: is being made by {other}. Wait for it, or stop it; the hold of a dead process ends by itself, "
        f"{_DEAD_AFTER_SECONDS:.0f} s after its last sign where it ran on another host."
    )
