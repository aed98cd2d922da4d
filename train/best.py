"""The best progress so far, kept beside the newest: by a distance where one is measured, till then by a loss.

best.json              which step, by which number
best/step_00001000     the same files as the progress that was written: kept when that is removed
"""

import fcntl
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from infra.storage import read_json, write_json
from train.progress import folder_for, step_of

FOLDER, _NOTE, _LOCK = "best", "best.json", ".best.lock"
LOSS, DISTANCE = "heldout_loss", "fd"
_BY = (LOSS, DISTANCE)
"""The later one counts more."""


@dataclass(frozen=True)
class Best:
    """A progress, and what it is the best by: the smallest is."""

    folder: Path
    by: str
    value: float
    under: str = ""
    """Under which conditions a distance was measured: such numbers say nothing of each other across them."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        return step_of(self.folder)


def keep_if_best(root: Path, folder: Path, by: str, value: float, under: str = "") -> bool:
    """Keep the progress in `folder`, below `root`, if none has a smaller number `under` the same conditions.

    Tells whether it is kept. Several processes may call it at once; one that is killed leaves what was kept before, or
    what it came to keep. Raises FileNotFoundError where `folder` is removed meanwhile.
    """
    if not math.isfinite(value):
        return False
    with (root / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker, and a measurement of an earlier step; ends with its process
        try:
            return _keep_if_best(root, folder, by, value, under)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open still


def _keep_if_best(root: Path, folder: Path, by: str, value: float, under: str) -> bool:
    before = best(root)
    if before is not None and _BY.index(before.by) > _BY.index(by):
        return False
    if before is not None and (before.by, before.under) == (by, under) and before.value <= value:
        return False
    kept = root / FOLDER / folder_for(root / FOLDER, step_of(folder))  # a new one: the best till now stays whole
    kept.mkdir(parents=True)
    for file in folder.iterdir():
        _same_file(file, kept / file.name)
    write_json(root / _NOTE, {"folder": kept.name, "by": by, "value": value, "under": under})
    for other in (root / FOLDER).iterdir():
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
    return True


def best(root: Path) -> Best | None:
    """Return the best that was kept, or None, also where the note of it is damaged."""
    try:
        note = read_json(root / _NOTE)
        found = Best(root / FOLDER / note["folder"], note["by"], float(note["value"]), note.get("under", ""))
    except (OSError, ValueError, KeyError, TypeError):  # the last one of JSON that is no such note
        return None
    return found if found.by in _BY and any(found.folder.glob("*.json")) else None


def _same_file(source: Path, target: Path) -> None:
    """Give a file a second name; where a filesystem has no such thing, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
