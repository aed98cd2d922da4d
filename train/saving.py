"""Writes progress while the training goes on: the host's copy is taken at once, the rest happens beside it."""

import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch.utils._pytree import tree_leaves

from train.best import LOSS, keep_if_best
from train.ema import EMA
from train.optimizer import Optimization
from train.progress import folder_for, snapshot, write_progress
from train.validation import asked

_TRY_AGAIN_SECONDS = 10.0


class Saver:
    """Hands the first worker's progress to Ray Train, which knows it when it is whole.

    One is written at a time: where the next is due before, the training waits. It waits too while a disk is full.
    """

    def __init__(self, root: Path, rank: int) -> None:
        self._root, self._is_first = root, rank == 0
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
        name = folder_for(self._root, int(metrics["step"]))
        with tempfile.TemporaryDirectory() as empty:
            checkpoint = ray.train.Checkpoint.from_directory(empty) if self._is_first else None
            state = snapshot(model, ema, optimization) if self._is_first else {}
            self._written = threading.Event()

            def write(_: object, folder: str) -> ray.train.Checkpoint:
                return self._write(state, self._root / folder, metrics)

            ray.train.report(
                dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name, checkpoint_upload_fn=write,
                checkpoint_upload_mode=mode.SYNC if last else mode.ASYNC, delete_local_checkpoint_after_upload=False,
                validation=asked(int(metrics["step"])) if measured else False,
            )  # fmt: skip
        if not self._is_first:
            self._written.set()
        return time.monotonic() - began

    def _write(self, state: dict[str, Any], folder: Path, metrics: Mapping[str, float]) -> ray.train.Checkpoint:
        while True:
            try:
                write_progress(folder, state)
            except (OSError, RuntimeError):  # torch raises either
                if not _is_full(folder, state):
                    raise
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            if LOSS in metrics:
                keep_if_best(self._root, folder, LOSS, metrics[LOSS])
            self._written.set()
            return ray.train.Checkpoint(str(folder), ray.train.get_context().get_storage().storage_filesystem)


def _is_full(folder: Path, state: Mapping[str, Any]) -> bool:
    """Tell whether the disk has no room for a snapshot."""
    tensors = [leaf for leaf in tree_leaves(dict(state)) if isinstance(leaf, torch.Tensor)]
    return shutil.disk_usage(folder.parent).free < sum(tensor.nbytes for tensor in tensors)
