"""Records a run in MLflow from the artifacts of its steps: what each result reports, and nothing of which step it is.

One parent run a recipe, a child a step and a trial. Nothing is lost when the server is away: the next run
records what is missing.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from infra.artifact import Artifact, Step
from infra.console import stage
from infra.fingerprint import canonical, flatten
from infra.follow import logged
from infra.result import Report
from pipeline.recipe import Recipe
from pipeline.recipes import RECIPES
from train.results import GRIDS, LOG

if TYPE_CHECKING:  # MLflow takes seconds to import, and a cached answer needs none
    from infra.tracking import Tracker


MOST_POINTS = 2000
_TIME = {"step", "time"}
TRIAL = "mar.trial"
"""Tag of the runs of a sweep's trials, which lie below the recipe's run, as its steps do."""


def tags_of(path: UPath, commit: str) -> dict[str, str]:
    """Return the tags that every run of a step has from its beginning."""
    return {"mar.path": str(path), "mar.commit": commit}


def record_step(tracker: "Tracker", parent: str, step: Step, artifact: Artifact) -> None:
    """Record a step as a child run, from its artifact alone; nothing if it was recorded before."""
    if tracker.is_finished(artifact.fingerprint, parent):
        return
    record, report = artifact.record, artifact.result.report(artifact.path)
    run = tracker.open(step.name, artifact.fingerprint, parent, tags_of(artifact.path, record["commit"]))
    tracker.params(run, {step.name: record["config"]})
    _log(tracker, run, report)
    tracker.metrics(run, {"seconds": record["seconds"]})
    if report.history is not None and report.history.exists():
        lines = logged(Path(str(report.history)))
        tracker.history(run, Thinned(lines[-1]["step"]).of(lines) if lines else [])
    for identity, (name, trial) in report.trials.items():
        _record_trial(tracker, parent, identity, name, trial)
    if report.for_parent:
        _log(tracker, parent, replace(report, datasets=()), once=False)
        for shown_by in (run, parent):
            _note(tracker, shown_by, artifact.result.headline(), report)
    for dataset in report.datasets:
        tracker.dataset(parent, dataset)
    tracker.finish(run)


def _record_trial(tracker: "Tracker", parent: str, identity: str, name: str, report: Report) -> None:
    fingerprint = f"trial {identity}"  # of trainings, identity is that of a checkpoint, which may be the recipe's own
    if tracker.is_finished(fingerprint, parent):
        return
    run = tracker.open(name, fingerprint, parent, {TRIAL: "yes"})
    _log(tracker, run, report)
    if report.pictures:
        _note(tracker, run, name, report)
    tracker.finish(run)


def _log(tracker: "Tracker", run: str, report: Report, *, once: bool = True) -> None:
    """Log what a result reports; `once`: a record that was cut short doubles no picture."""
    tracker.params(run, report.params)
    tracker.metrics(run, report.metrics)
    for name, points in report.curves.items():
        tracker.curve(run, name, points)
    tracker.tags(run, report.tags)
    for key, path in report.pictures.items():
        tracker.image(run, path, key, once=once)
    for path in report.files:
        tracker.file(run, path)
    for dataset in report.datasets:
        tracker.dataset(run, dataset)


def _note(tracker: "Tracker", run: str, headline: str, report: Report) -> None:
    """Show the numbers and the pictures at the top of the run's page, where the UI has a description."""
    shown = [headline]
    for key, path in report.pictures.items():
        tracker.file(run, path)
        shown.append(f"![{key}](get-artifact?path={path.name}&run_uuid={run})")
    tracker.note(run, "\n\n".join(shown))


class Thinned:
    """Of each metric in a log, one point for each of at most MOST_POINTS equal runs of steps, and the last."""

    def __init__(self, steps: int) -> None:
        self.steps, self.stride = steps, -(-steps // (MOST_POINTS - 1))
        self.buckets: dict[str, int] = {}

    def of(self, lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return what to keep of these lines, which follow those given before."""
        kept = (self._of(line, self._bucket(line["step"])) for line in lines)
        return [line for line in kept if line.keys() - _TIME]

    def _bucket(self, step: int) -> int:
        """Return the number of a step's run; the last has one of its own, though it is logged again."""
        return self.steps if step == self.steps else (step - 1) // self.stride

    def _of(self, line: Mapping[str, Any], bucket: int) -> Mapping[str, Any]:
        kept = {name: value for name, value in line.items() if name in _TIME or bucket > self.buckets.get(name, -1)}
        self.buckets |= {name: max(bucket, self.buckets.get(name, -1)) for name in line}
        return kept


class LiveMetrics:
    """Sends the training log to MLflow while training runs, at most every few seconds; never stops the training."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds, self.last = every_seconds, 0.0
        self.lines, self.measured = list[Mapping[str, Any]](), list[Mapping[str, Any]]()
        self.target: tuple[Tracker, str, Step, str] | None = None
        self.thinned = Thinned(1)

    def follow(self, tracker: "Tracker", parent: str, step: Step, commit: str, steps: int) -> None:
        """Send what comes, of `steps` steps in all, to the run of `step` below `parent`.

        And first what an earlier process logged and did not send: what it sent is thinned as it was.
        """
        self.target, self.thinned = (tracker, parent, step, commit), Thinned(steps)
        self.lines = self.thinned.of(logged(Path(str(step.path)) / LOG))

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the log: of a step, or what was measured of a checkpoint, which ends after later steps."""
        if "loss" in line:
            self.lines += self.thinned.of([line])
        else:
            self.measured.append(line)
        if self.target is None or time.monotonic() - self.last < self.every_seconds:
            return
        tracker, parent, step, commit = self.target
        try:
            run = tracker.open(step.name, step.fingerprint, parent, tags_of(step.path, commit))
            tracker.history(run, self.lines)
            self.lines = []
            while self.measured:
                self._send_measured(tracker, run, step.path, self.measured[0])
                self.measured.pop(0)
        except Exception as error:  # noqa: BLE001  the log stays on disk, and is recorded when the step is done
            stage(step.name, f"MLflow is away ({type(error).__name__}); the log is recorded later")
        self.last = time.monotonic()

    def _send_measured(self, tracker: "Tracker", run: str, path: UPath, line: Mapping[str, Any]) -> None:
        """Send the numbers of a checkpoint, and its grids, under the names that its result reports them by."""
        for name, value in line.items():
            if isinstance(value, float) and name != "time":
                tracker.curve(run, name, [(int(line["step"]), value)])
        for picture in sorted((path / GRIDS).glob(f"step_{line['step']:08d}*.png")):
            tracker.image(run, picture, f"{GRIDS}/{picture.stem}", once=True)


def told_apart(recipe: Recipe) -> dict[str, Any]:
    """Return the few parameters that tell runs apart: the recipe in short, and what differs from the named one."""
    train, model = recipe.train, recipe.train.model
    short = {
        "recipe": recipe.name, "image_size": recipe.tokenize.image_size, "tokenizer": recipe.tokenizer.kind,
        "head": model.head.kind, "train_steps": train.train_steps, "batch_size": train.batch_size, "lr": train.lr,
        "seed": train.seed,
    }  # fmt: skip
    named = RECIPES.get(recipe.name)
    if named is None:
        return short
    before, now = (flatten(canonical(of, identity=False)) for of in (named(), recipe))
    return {**short, **{name: value for name, value in now.items() if before.get(name) != value}}
