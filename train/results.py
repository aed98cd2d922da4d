"""What the step checkpoint returns. Imports nothing heavy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from infra.console import Progress, stage
from infra.follow import logged
from infra.result import Report, Result

LOG, BEST = "metrics.jsonl", "best"
"""Beside a trained model: its log, and the model that was best, where that is not the last."""
EVALUATIONS, GRIDS = "evaluations.jsonl", "meanwhile"
"""Beside a trained model: what was measured of its checkpoints meanwhile, and their sample grids."""


@dataclass(frozen=True, kw_only=True)
class CheckpointResult(Result):
    """How long a model was trained, and where its loss ended."""

    train_steps: int
    images_seen: int
    parameters: int
    images: int
    """Images of the store that were trained on."""
    images_held_back: int
    """Images of the store that were not."""
    last: Mapping[str, float]
    """Terms of the loss in the last logged step."""
    images_per_second: float | None = None
    """Median over the log."""
    best_step: int = 0
    """Step that was best by its distance, or else by the loss on held-out images; 0 where neither was measured."""

    def headline(self) -> str:
        """Return the counts and the loss."""
        return super().headline() + "".join(f", {name} {value:.4g}" for name, value in self.last.items())

    def report(self, path: UPath) -> Report:
        """Return the numbers, and the log as curves."""
        last = {f"last/{name}": value for name, value in self.last.items()}
        return Report(
            metrics={**super().report(path).metrics, **last}, history=path / LOG, curves=_curves(path / EVALUATIONS),
            pictures={f"meanwhile/{picture.stem}": picture for picture in sorted((path / GRIDS).glob("*.png"))},
        )  # fmt: skip


def _curves(log: UPath) -> dict[str, list[tuple[int, float]]]:
    """Return the numbers of a log as (step, value) points by name: those measured as the newest were."""
    curves: dict[str, list[tuple[int, float]]] = {}
    lines = [line for line in logged(Path(str(log))) if "failed" not in line]
    for line in lines:
        if line.get("under") != lines[-1].get("under"):
            continue  # a training that was extended, or went on, under other conditions
        for name, value in line.items():
            if isinstance(value, float) and name != "time":
                curves.setdefault(name, []).append((line["step"], value))
    return curves


class TrainingProgress:
    """Tells a training's log on the console, with the newest loss on held-out images, and hands each line on."""

    def __init__(self, train_steps: int, hand_on: Callable[[Any], None]) -> None:
        self._progress, self._heldout, self._hand_on = Progress("checkpoint", train_steps, "steps"), "", hand_on

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line: of a step, or of what was measured of one."""
        if "loss" not in line:
            self._tell(line)
            return
        if "heldout_loss" in line:
            self._heldout = f", held out {line['heldout_loss']:.3f}"
        if "skipped" in line:
            told = f"{line['skipped']} steps skipped, the last {line['skipped_step']}"
            stage("checkpoint", f"{told}: their gradients were not finite")
        rate = f"{line['images_per_second']:.0f} images/s, MFU {line['mfu']:.0%}"
        self._progress.update(line["step"], f", loss {line['loss']:.3f}{self._heldout}, {rate}")
        self._hand_on(line)

    def _tell(self, line: Mapping[str, Any]) -> None:
        if "failed" in line:
            stage("checkpoint", f"step {line['step']} could not be measured: {line['failed']}")
            return
        others = ("step", "time", "under")
        found = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name not in others)
        stage("checkpoint", f"step {line['step']} measured: {found}")
        self._hand_on(line)
