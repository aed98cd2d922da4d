"""What a training goes on from: weights, averages and moments after a step, with a checksum; none of it is code.

    step_00001000/progress.pt      tensors alone
    step_00001000/progress.json    bytes and sha256 of the other, written last

A folder that does not hold what its record says is passed over, and the one before it taken.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from infra.storage import read_json, write_json
from train.ema import EMA
from train.optimizer import Optimization

PROGRESS, RECORD = "progress.pt", "progress.json"
_STEP = "step_"


def snapshot(model: nn.Module, ema: EMA, optimization: Optimization) -> dict[str, Any]:
    """Return a copy in the host's memory of what a later run needs to go on exactly here."""
    state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimization": optimization.state_dict()}
    return tree_map(lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, state)


def write_progress(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a `snapshot`, then its record."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PROGRESS).open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    write_json(folder / RECORD, {"bytes": (folder / PROGRESS).stat().st_size, "sha256": _digest(folder / PROGRESS)})


def read_progress(folder: Path) -> dict[str, Any]:
    """Return what `write_progress` wrote, as a map of the file: all workers of a host share what they read of it."""
    return torch.load(folder / PROGRESS, map_location="cpu", weights_only=True, mmap=True)


def load_progress(folder: Path, model: nn.Module, ema: EMA, optimization: Optimization) -> int:
    """Go on from what `write_progress` wrote; returns the number of steps done."""
    state = read_progress(folder)
    model.load_state_dict(state["model"])
    ema.model.load_state_dict(state["ema"])
    optimization.load_state_dict(state["optimization"])
    return optimization.step_number


def folder_for(root: Path, step: int) -> str:
    """Return the name of a new folder below `root` for a step; one that was passed over keeps its name."""
    name, others = f"{_STEP}{step:08d}", 0
    while (root / (name + f"-{others}" * bool(others))).exists():
        others += 1
    return name + f"-{others}" * bool(others)


def step_of(folder: Path) -> int:
    """Return the number of steps done where this progress was written."""
    return int(folder.name.removeprefix(_STEP).split("-")[0])


def newest_whole(root: Path, pass_over: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the folder of the newest progress that is whole, or None; `pass_over` is told of each that is not."""
    for folder in _newest_first(root):
        if not (fault := _fault(folder)):
            return folder
        pass_over(f"{folder}: {fault}; passed over")
    return None


def _newest_first(root: Path) -> Iterator[Path]:
    found = [path for path in root.glob(f"{_STEP}*") if path.is_dir()]
    yield from sorted(found, key=lambda path: (step_of(path), len(path.name), path.name), reverse=True)


def _fault(folder: Path) -> str:
    """Return what is wrong with a progress, or nothing."""
    try:
        record = read_json(folder / RECORD)
        size = (folder / PROGRESS).stat().st_size
        if size != record["bytes"]:
            return f"{PROGRESS} has {size} bytes instead of {record['bytes']}"
        return "" if _digest(folder / PROGRESS) == record["sha256"] else f"{PROGRESS} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"not finished ({type(error).__name__})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
