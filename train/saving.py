"""Writes progress while the training goes on: the host's copy is taken at once, the rest happens beside it."""

import errno
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors import SafetensorError

from train.best import LOSS, keep_if_best
from train.ema import EMA
from train.optimizer import Optimization
from train.progress import Piece, folder_for, is_written, snapshot, write_progress
from train.validation import asked
from train.workers import as_the_first_says

_TRY_AGAIN_SECONDS, _LOOK_SECONDS = 10.0, 0.05


class Saver:
    """Hands each worker's share of the progress to Ray Train, which knows it when all of it is whole.

    One is written at a time: where the next is due before, the training waits. It waits too while a disk is full.
    """

    def __init__(self, root: Path, rank: int, world: int, of: Mapping[str, Any]) -> None:
        """`of` tells the training apart from others."""
        self._root, self._rank, self._world, self._of = root, rank, world, of
        self._pieces: dict[str, Piece] = {}
        self._written = threading.Event()
        self._written.set()

    def save(
        self,
        metrics: Mapping[str, float],
        model: torch.nn.Module,
        ema: EMA,
        optimization: Optimization,
        *,
        last: bool,
        measured: bool = False,
    ) -> float:
        """Save what there is after step `metrics["step"]`; waits for the `last`. Returns the seconds it held up.

        What is `measured` is so by the trainer's validation, when it is written.
        """
        began = time.monotonic()
        mode = ray.train.CheckpointUploadMode
        self._written.wait()
        name = as_the_first_says(folder_for(self._root, int(metrics["step"])))
        self._pieces = pieces = snapshot(model, ema, optimization, self._rank, self._world, self._pieces)
        self._written = threading.Event()

        def write(_: object, folder: str) -> ray.train.Checkpoint:
            return self._write(pieces, self._root / folder, metrics)

        ray.train.report(  # of what is handed over Ray reads nothing: `write` writes it
            dict(metrics), checkpoint=ray.train.Checkpoint(str(self._root)), checkpoint_dir_name=name,
            checkpoint_upload_fn=write, checkpoint_upload_mode=mode.SYNC if last else mode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            validation=asked(int(metrics["step"])) if measured else False,
        )  # fmt: skip
        return time.monotonic() - began

    def _write(self, pieces: Mapping[str, Piece], folder: Path, metrics: Mapping[str, float]) -> ray.train.Checkpoint:
        while True:
            try:
                write_progress(folder, pieces, self._rank, self._world, self._of)
            except (OSError, SafetensorError) as error:
                if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
                    raise
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            wait = _LOOK_SECONDS / 2
            while not is_written(folder, self._world):  # a worker that ends takes this one with it
                time.sleep(wait := min(2 * wait, _TRY_AGAIN_SECONDS))
            if self._rank == 0 and LOSS in metrics:
                with suppress(OSError):  # the progress is whole: a best that is not kept is no failure
                    keep_if_best(self._root, folder, LOSS, metrics[LOSS])
            self._written.set()
            return ray.train.Checkpoint(str(folder), ray.train.get_context().get_storage().storage_filesystem)
