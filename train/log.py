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
        self, path: Path, start: int, batch_size: int, most_images_per_second: float, device: torch.device, workers: int
    ) -> None:
        """`most_images_per_second` are those of devices that did nothing but multiply: what MFU is a share of."""
        self._path, self._batch_size, self._last_step, self._most = path, batch_size, start, most_images_per_second
        self._device, self._workers = device, workers
        self._since, self._waited, self._saving = time.monotonic(), 0.0, 0.0
        self._waits: list[tuple[_Moment, _Moment]] = []
        self._untold: dict[str, float] = {}

    def timing(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting the seconds in which the device did nothing, since the next was not there yet."""
        iterator, missing = iter(items), object()
        while True:
            began = _Moment(self._device)
            item = next(iterator, missing)
            self._waits.append((began, _Moment(self._device)))
            if item is missing:
                return
            yield item  # type: ignore[misc]

    def held_up(self, seconds: float) -> None:
        """Tell that a checkpoint, or the loss that is measured with it, has held the training up."""
        self._saving += seconds

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the line of a step, whose numbers were fetched from the device: it has done what came before.

        Skipped steps of lines that the disk did not take are counted in the next.
        """
        if "skipped" in self._untold:
            metrics = {**self._untold, **metrics, "skipped": metrics.get("skipped", 0) + self._untold["skipped"]}
        now = time.monotonic()
        self._waited += sum(began.until(ended) for began, ended in self._waits)
        self._waits = []
        seconds, images = now - self._since - self._saving, (step - self._last_step) * self._batch_size
        line = {
            "step": step, **metrics,
            "images_per_second": round(images / max(seconds, 1e-9), 2),
            "mfu": round(images / max(seconds, 1e-9) / self._most, 4),
            "data_seconds": round(self._waited, 3), "checkpoint_seconds": round(self._saving, 3),
            "peak_memory_gib": round(_peak_memory(self._device) / _GIB, 3), "workers": self._workers,
            "time": time.time(),
        }  # fmt: skip
        try:
            append(self._path, line)
        except OSError:  # the next line tells of these steps too
            self._untold = {name: line[name] for name in ("skipped", "skipped_step") if name in line}
            return
        self._untold = {}
        self._last_step, self._since, self._waited, self._saving = step, now, 0.0, 0.0


class _Moment:
    """When a device has done what it was told so far; of a processor, which does it at once: now."""

    def __init__(self, device: torch.device) -> None:
        self._host, self._event = time.monotonic(), None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def until(self, later: "_Moment") -> float:
        """Return the seconds to a later one; waits for the device until it was there."""
        if self._event is None or later._event is None:
            return later._host - self._host
        later._event.synchronize()
        return self._event.elapsed_time(later._event) / 1000


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process has held: of its GPU where it trains on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
