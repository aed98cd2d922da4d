"""The log of a training: a line for each logged step, which the driver follows."""

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from infra.follow import append

T = TypeVar("T")
_GIB = 1 << 30
NOT_METRICS = (
    "step", "time", "images_per_second", "lr", "skipped", "skipped_step", "data_seconds", "checkpoint_seconds",
    "peak_memory_gib", "mfu", "workers",
)  # fmt: skip
"""Of a line of the log; all else is what the step returned, and the same on images that are held out."""


class Log:
    """Appends lines that tell where the time went since the one before; a full disk costs lines, not the training."""

    def __init__(
        self, path: Path, start: int, batch_size: int, most_images_per_second: float, workers: int = 1
    ) -> None:
        """`most_images_per_second` are those of devices that did nothing but multiply: what MFU is a share of."""
        self._path, self._batch_size, self._last_step, self._most = path, batch_size, start, most_images_per_second
        self._workers = workers
        self._since, self._waited, self._saving = time.monotonic(), 0.0, 0.0

    def timing(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting the seconds that each is waited for."""
        iterator, missing = iter(items), object()
        while True:
            began = time.monotonic()
            item = next(iterator, missing)
            self._waited += time.monotonic() - began
            if item is missing:
                return
            yield item  # type: ignore[misc]

    def held_up(self, seconds: float) -> None:
        """Tell that a checkpoint, or the loss that is measured with it, has held the training up."""
        self._saving += seconds

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the line of a step."""
        now = time.monotonic()
        seconds, images = now - self._since - self._saving, (step - self._last_step) * self._batch_size
        line = {
            "step": step, **metrics,
            "images_per_second": round(images / max(seconds, 1e-9), 2),
            "mfu": round(images / max(seconds, 1e-9) / self._most, 4),
            "data_seconds": round(self._waited, 3), "checkpoint_seconds": round(self._saving, 3),
            "peak_memory_gib": round(_peak_memory() / _GIB, 3), "workers": self._workers, "time": time.time(),
        }  # fmt: skip
        try:
            append(self._path, line)
        except OSError:
            return  # the next line tells of these steps too
        self._last_step, self._since, self._waited, self._saving = step, now, 0.0, 0.0


def _peak_memory() -> int:
    """Return the most bytes that the process has held: of its GPU where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
