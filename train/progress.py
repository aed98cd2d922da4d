"""What a training goes on from: weights, averages and moments after a step, with checksums; none of it is code.

    step_00001000/part_00000-of-00002.safetensors   what the first of two workers wrote
    step_00001000/part_00000-of-00002.json          bytes and sha256 of it, of which training, and sha256 of all that;
                                                    written after it

The parts are a checkpoint as torch.distributed.checkpoint has them in safetensors: any number of workers, cut models or
whole ones, read from them what each needs. A folder that does not hold what its records say is passed over, and the one
before it taken.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.errors import InputError
from infra.fingerprint import differences
from infra.storage import read_json, write_json
from train.ema import EMA
from train.optimizer import Optimization
from train.sharding import is_cut

MODEL, EMA_OF_IT = "model", "ema"
_STEP, _OFFSETS, _CHECK = "step_", "DCP_SHARDING_INFO", "check"


class Piece(NamedTuple):
    """What one worker has of a tensor, in the host's memory, and where it begins there."""

    values: Tensor
    offsets: list[int]


def _tensors(model: nn.Module, ema: EMA, optimization: Optimization) -> dict[str, Tensor]:
    """Return all of a training's state by name: the tensors themselves, no copies."""
    of = {MODEL: model.state_dict(), EMA_OF_IT: ema.state_dict(), "optimization": optimization.state_dict()}
    return {f"{kind}.{name}": tensor for kind, state in of.items() for name, tensor in state.items()}


def snapshot(
    model: nn.Module,
    ema: EMA,
    optimization: Optimization,
    rank: int = 0,
    world: int = 1,
    into: Mapping[str, Piece] | None = None,
) -> dict[str, Piece]:
    """Return a copy of this worker's share: its parts of what is cut, and in turn some of what every worker has.

    It lies where an earlier snapshot (`into`) lay: memory that is there already, and from where a GPU copies by itself,
    takes a fraction of the time.
    """
    pieces = {}
    for number, (name, tensor) in enumerate(_tensors(model, ema, optimization).items()):
        piece = _cut_piece(tensor) if is_cut(tensor) else Piece(tensor, [0] * tensor.ndim)
        if piece.values.numel() and (is_cut(tensor) or number % world == rank):
            held = into[name].values if into else _room(piece.values)
            pieces[name] = Piece(held.copy_(piece.values.detach(), non_blocking=True), piece.offsets)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return pieces


def _room(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _cut_piece(tensor: Any) -> Piece:  # noqa: ANN401  a DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(tensor.to_local(), list(offsets))


def write_progress(
    folder: Path, pieces: Mapping[str, Piece], rank: int = 0, world: int = 1, of: Mapping[str, Any] | None = None
) -> None:
    """Write a worker's `snapshot`, then its record, with what tells the training apart from others (`of`)."""
    folder.mkdir(parents=True, exist_ok=True)
    part = _part(folder, rank, world)
    offsets = {name: {"saved_offsets": piece.offsets} for name, piece in pieces.items()}
    save_file({name: piece.values for name, piece in pieces.items()}, part, {_OFFSETS: json.dumps(offsets)})
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    record = {"bytes": part.stat().st_size, "sha256": _digest(part), "of": of or {}}
    write_json(_record(part), {**record, _CHECK: _digest_of(record)})


def is_written(folder: Path, world: int) -> bool:
    """Tell whether all workers have written their parts."""
    return all(_record(_part(folder, rank, world)).exists() for rank in range(world))


def load_progress(folder: Path, model: nn.Module, ema: EMA, optimization: Optimization) -> int:
    """Go on from what was written, whoever wrote it; returns the number of steps done.

    Of what is cut each worker reads its part alone, and each tensor goes where it belongs before the next is read.
    """
    state = _tensors(model, ema, optimization)
    _read(folder, state)
    return optimization.loaded({name.removeprefix("optimization."): tensor for name, tensor in state.items()})


def read_weights(folder: Path, of: str) -> dict[str, Tensor]:
    """Return the whole weights (`MODEL`) or averages (`EMA_OF_IT`)."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    there = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)  # pyrefly: ignore  all entries are tensors
        for name, entry in there.items()
        if name.startswith(f"{of}.")
    }
    _read(folder, state)
    return {name.removeprefix(f"{of}."): tensor for name, tensor in state.items()}


def _read(folder: Path, state: dict[str, Any]) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load  # a second: not for who only looks

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose: nobody waits for others
        load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def folder_for(root: Path, step: int) -> str:
    """Return the name of a new folder below `root` for a step; one that was passed over keeps its name."""
    name, others = f"{_STEP}{step:08d}", 0
    while (root / (name + f"-{others}" * bool(others))).exists():
        others += 1
    return name + f"-{others}" * bool(others)


def step_of(folder: Path) -> int:
    """Return the number of steps done where this progress was written."""
    return int(folder.name.removeprefix(_STEP).split("-")[0])


def check_same(root: Path, of: Mapping[str, Any]) -> None:
    """Raise InputError naming each field where a progress below `root` is of another training than `of` tells."""
    for record in sorted(root.glob(f"{_STEP}*/part_*.json")):
        try:
            found = _recorded(record)["of"]
        except (OSError, ValueError):
            continue  # damaged: it will be passed over
        if found and (lines := differences(found, of)):
            differing = "\n".join(f"  {line}" for line in lines)
            raise InputError(
                f"{record.parent}: this is a checkpoint of another training (there -> asked for):\n{differing}\n"
                f"Ask for the same, or give another --compute.out, or remove {root}."
            )


def newest_whole(root: Path, pass_over: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the folder of the newest progress that is whole, or None; `pass_over` is told of each that is not."""
    for folder in folders(root):
        if not (found := fault(folder)):
            return folder
        pass_over(f"{folder}: {found}; passed over")
    return None


def folders(root: Path) -> list[Path]:
    """Return the folders of all progress below `root`, whole or not, newest first."""
    found = [path for path in root.glob(f"{_STEP}*") if path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), len(path.name), path.name), reverse=True)


def fault(folder: Path) -> str:
    """Return what is wrong with a progress, or nothing."""
    try:
        world = int(next(folder.glob("part_*.json")).stem.split("-")[-1])
        return next(filter(None, (_part_fault(_part(folder, rank, world)) for rank in range(world))), "")
    except StopIteration:
        earlier = (folder / "progress.pt").exists()
        return "written by an earlier version, which alone goes on from it" if earlier else "not finished"
    except (OSError, ValueError) as error:
        return f"not finished ({type(error).__name__})"


def _part_fault(part: Path) -> str:
    record, size = _recorded(_record(part)), part.stat().st_size
    if size != record["bytes"]:
        return f"{part.name} has {size} bytes instead of {record['bytes']}"
    return "" if _digest(part) == record["sha256"] else f"{part.name} is not what was written"


def _part(folder: Path, rank: int, world: int) -> Path:
    return folder / f"part_{rank:05d}-of-{world:05d}.safetensors"


def _record(part: Path) -> Path:
    return part.with_suffix(".json")


def _recorded(path: Path) -> dict[str, Any]:
    """Return what `write_progress` recorded. Raises OSError or ValueError where it is not what was written."""
    match read_json(path):
        case {"bytes": _, "sha256": _, "of": dict(), **rest} as record if rest.keys() <= {_CHECK}:
            known = {name: value for name, value in record.items() if name != _CHECK}
            if rest.get(_CHECK) in (None, _digest_of(known)):
                return record
    raise ValueError(f"{path.name} is not what was written")


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
