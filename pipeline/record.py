"""Records a run in MLflow from the artifacts of its steps: what each result reports, and nothing of which step it is.

One parent run a recipe, a child a step, a child of that a trial. Nothing is lost when the server is away: the next run
records what is missing.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from infra.artifact import Artifact, Step
from infra.console import stage
from infra.follow import logged
from infra.result import Report

if TYPE_CHECKING:  # MLflow takes seconds to import, and a cached answer needs none
    from infra.tracking import Tracker


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
        tracker.history(run, logged(Path(str(report.history))))
    for identity, (name, trial) in report.trials.items():
        _record_trial(tracker, run, identity, name, trial)
    if report.for_parent:
        _log(tracker, parent, replace(report, datasets=()))
    for dataset in report.datasets:
        tracker.dataset(parent, dataset)
    tracker.finish(run)


def _record_trial(tracker: "Tracker", parent: str, identity: str, name: str, report: Report) -> None:
    if tracker.is_finished(identity, parent):
        return
    run = tracker.open(name, identity, parent)
    _log(tracker, run, report)
    tracker.finish(run)


def _log(tracker: "Tracker", run: str, report: Report) -> None:
    tracker.params(run, report.params)
    tracker.metrics(run, report.metrics)
    tracker.tags(run, report.tags)
    for key, path in report.pictures.items():
        tracker.image(run, path, key)
    for path in report.files:
        tracker.file(run, path)
    for dataset in report.datasets:
        tracker.dataset(run, dataset)


class LiveMetrics:
    """Sends the training log to MLflow while training runs, at most every few seconds; never stops the training."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds, self.lines, self.last = every_seconds, list[Mapping[str, Any]](), 0.0
        self.target: tuple[Tracker, str, Step, str] | None = None

    def follow(self, tracker: "Tracker", parent: str, step: Step, commit: str) -> None:
        """Send what comes to the run of `step` below `parent`."""
        self.target = (tracker, parent, step, commit)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the log."""
        self.lines.append(line)
        if self.target is None or time.monotonic() - self.last < self.every_seconds:
            return
        tracker, parent, step, commit = self.target
        try:
            run = tracker.open(step.name, step.fingerprint, parent, tags_of(step.path, commit))
            tracker.history(run, self.lines)
            self.lines = []
        except Exception as error:  # noqa: BLE001  the log stays on disk, and is recorded when the step is done
            stage(step.name, f"MLflow is away ({type(error).__name__}); the log is recorded later")
        self.last = time.monotonic()
