"""Checkpoints measured off the training's workers, by a function handed down: no step waits, no failure counts."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError, TaskCancelledError
from upath import UPath

from infra.cluster import Workers
from infra.errors import InputError
from infra.follow import append
from train.best import DISTANCE, keep_if_best
from train.card import ModelCard
from train.checkpoint import write_model
from train.progress import EMA_OF_IT, MODEL, folders, read_weights, step_of

STOP, DRAINED = "stop", "drained"
"""Files beside the progress: the training is to end, or leaves a node: no measurement holds it up then."""
_ATTEMPTS, _LOOK_SECONDS = 2, 1.0
_MOST_WAITING = 2


@dataclass(frozen=True)
class Validation:
    """How checkpoints are measured while the training goes on."""

    measure: Callable[[str, int, int], Mapping[str, float]]
    """(model directory, step, cores) -> numbers by name."""
    every: int
    """Steps between checkpoints that are measured."""
    gpus: float = 0.0
    """Of a GPU that the training leaves free; 0 takes a core."""
    under: str = ""
    """Digest of the conditions that the numbers are measured under."""
    longest: float = 24 * 3600.0
    """Seconds of one measurement: the training ends when all have, and must not wait for one that hangs."""

    def beside(self, workers: Workers, *, chosen: bool) -> Workers:
        """Return the workers with a core or GPU left free, unless they were `chosen`.

        Raises InputError where none is.
        """
        if chosen:
            return workers
        if self.gpus:
            left = workers.count - math.ceil(self.gpus / workers.gpus) if workers.gpus else workers.count
            if left < 1:
                raise InputError("--evaluate.meanwhile.gpus: the training takes the only GPU; 0 measures on a core")
            return replace(workers, count=left)
        if workers.cpus < 2 and not workers.gpus:
            raise InputError("--evaluate.meanwhile.every measures on a core beside the training: it has one core alone")
        return replace(workers, cpus=max(workers.cpus - 1, 1))

    def for_ray(self, card: ModelCard, root: Path, log: Path) -> ray.train.ValidationConfig:
        """Return what Ray Train is told; numbers go to the file `log`, and decide which progress in `root` is best."""
        fn = partial(_validate, validation=self, card=card, root=root, log=log)
        return ray.train.ValidationConfig(fn, ray_remote_kwargs={"num_cpus": 0})


def asked(step: int) -> ray.train.ValidationTaskConfig:
    """Return what a report of a checkpoint that is measured tells Ray Train."""
    return ray.train.ValidationTaskConfig(fn_kwargs={"step": step})


def _validate(
    checkpoint: ray.train.Checkpoint, step: int, validation: Validation, card: ModelCard, root: Path, log: Path
) -> dict[str, Any]:
    """Have a checkpoint measured by a process of its own; what fails there is told in the log, and costs nothing.

    Ray Train measures one after the other, keeps all that wait, and ends when all are done: a checkpoint is passed over
    when more than `_MOST_WAITING` newer ones wait.
    """
    folder, began = Path(checkpoint.path), time.monotonic()
    newest = max(map(step_of, folders(root)), default=step)
    if newest // validation.every - step // validation.every > _MOST_WAITING:
        append(log, {"step": step, "failed": f"passed over, since it is slower than the training, at step {newest}"})
        return {}
    options = {"num_cpus": 1, "num_gpus": validation.gpus, "max_retries": _ATTEMPTS - 1}
    is_left = False
    try:
        measured = ray.remote(**options)(_measured).remote(validation.measure, card, folder)
        while not ray.wait([measured], timeout=_LOOK_SECONDS)[0]:
            if any((root / name).exists() for name in (STOP, DRAINED)):
                is_left = True
                ray.cancel(measured, force=True)
            elif time.monotonic() - began > validation.longest:
                ray.cancel(measured, force=True)
                raise TimeoutError(f"no number after {validation.longest:.0f} s")
        found = dict(ray.get(measured))
    except (RayError, OSError) as error:
        if is_left:  # Ray keeps what is cancelled, and has it measured when the training goes on
            raise TaskCancelledError from None
        append(log, {"step": step, "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"})
        return {}
    took = time.monotonic() - began
    append(log, {"step": step, **found, "evaluation_seconds": took, "time": time.time(), "under": validation.under})
    if DISTANCE in found:
        with suppress(OSError):  # it was measured: a best that is not kept is no failure
            keep_if_best(root, folder, DISTANCE, found[DISTANCE], validation.under)
    return found


def _measured(measure: Callable[..., Mapping[str, float]], card: ModelCard, folder: Path) -> Mapping[str, float]:
    step, weights = step_of(folder), [read_weights(folder, kind) for kind in (MODEL, EMA_OF_IT)]
    with tempfile.TemporaryDirectory() as model:
        write_model(UPath(model), replace(card, train_steps=step), *weights)
        return measure(model, step, 1)
