"""What a sweep of trainings returns. Imports nothing heavy."""

import math
from dataclasses import dataclass, field

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.metrics import frechet
from infra.console import table
from infra.result import Report, Result
from tune.results import ERROR, PAGE, TIED

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training of a sweep, and what it is worth."""

    label: str
    checkpoint: str
    """Its checkpoint's fingerprint."""
    parameters: int
    loss: float
    """In the last logged step."""
    fd: float
    error: float
    """Standard error of the distance."""
    seconds_per_image: float
    """Of sampler and decoder, warmed up, with nothing beside it."""
    train_steps: int
    curve: Curve = ()
    """(step, loss on held-out images) at its checkpoints."""
    fields: dict[str, str] = field(default_factory=dict)
    """What of the recipe it replaced, by dotted name."""
    head_parameters: int = 0
    """Of the parameters, those of the head."""

    def is_tied_with(self, other: "Trained") -> bool:
        """Tell whether the distances of both differ by less than two standard errors of a difference."""
        return abs(self.fd - other.fd) < TIED * math.hypot(self.error, other.error)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A training that was stopped early, when, and by which rule."""

    label: str
    checkpoint: str
    """Fingerprint of the checkpoint that it would have become, and goes on to in a later run of its own."""
    parameters: int
    step: int
    value: float
    """Of what it was stopped by."""
    reason: str
    curve: Curve = ()
    """(step, loss on held-out images) at its checkpoints."""
    fields: dict[str, str] = field(default_factory=dict)
    """What of the recipe it replaced, by dotted name."""
    head_parameters: int = 0
    """Of the parameters, those of the head."""


@dataclass(frozen=True, kw_only=True)
class FailedTraining:
    """A training without a model, and why."""

    label: str
    reason: str
    checkpoint: str = ""
    """Fingerprint of the checkpoint that it would have become."""
    fields: dict[str, str] = field(default_factory=dict)
    """What of the recipe it replaced, by dotted name."""


@dataclass(frozen=True, kw_only=True)
class TrainingSweepResult(Result):
    """The trainings of a sweep, the smallest distance first."""

    metric: str
    conditions: Conditions
    trials: tuple[Trained, ...]
    failed: tuple[FailedTraining, ...] = ()
    stopped: tuple[Stopped, ...] = ()
    """Those that were trained longest first."""
    rule: str = ""
    """What the stopped ones were stopped by."""
    stopping_metric: str = ""
    """Name, in the log, of what the curves show."""
    timed_batch: int = 0
    """Images drawn at once where they were timed."""
    figures: tuple[str, ...] = ()
    """Names of the figures that were drawn."""

    @property
    def tied(self) -> tuple[str, ...]:
        """Labels of others whose distance is the best one's within error."""
        return tuple(trial.label for trial in self.trials[1:] if trial.is_tied_with(self.trials[0]))

    def headline(self) -> str:
        """Return the best training and its distance, and how the others ended."""
        best = self.trials[0]
        planned = len(self.trials) + len(self.stopped) + len(self.failed)
        parts = [f"best of {planned} trainings: {self.metric} {best.fd:g} ± {best.error:.2g} at {best.label}"]
        parts += [f"within error of {len(self.tied)} more"] if self.tied else []
        parts += [f"{len(of)} {what}" for what, of in (("stopped", self.stopped), ("failed", self.failed)) if of]
        return "; ".join(parts)

    def table(self) -> str:
        """Return what a person compares: sizes, distances, seconds, and how the others ended."""
        rows = [
            (t.label, *_sizes(t), f"{t.fd:.4g} ± {t.error:.2g}", f"{t.seconds_per_image:.4g}", _last(t.curve))
            for t in self.trials
        ]
        rows += [(t.label, *_sizes(t), f"stopped at step {t.step}", "", _last(t.curve)) for t in self.stopped]
        rows += [(t.label, "", "", f"failed: {t.reason}", "", "") for t in self.failed]
        sizes = ("of the head", "parameters")
        return table(rows, ("training", *sizes, self.metric, "seconds an image", self.stopping_metric or "loss"))

    def report(self, path: UPath) -> Report:
        """Return the best number, the figures, and every planned training as a run of its own."""
        drawn = [(name, path / f"{name}.png") for name in self.figures]
        page = (path / PAGE,) if (path / PAGE).exists() else ()
        return Report(
            metrics={f"best_{frechet.NAME}": self.trials[0].fd},
            tags={"metric": self.metric, "best": self.trials[0].label, **self.conditions.tags},
            pictures={f"sweep/{name}": file for name, file in drawn},
            files=(*page, *(path / f"{name}.svg" for name in self.figures)),
            trials={
                **{t.checkpoint: (t.label, self._finished(t)) for t in self.trials},
                **{t.checkpoint: (t.label, self._stopped(t)) for t in self.stopped},
                **{t.checkpoint or t.label: (t.label, _failed(t)) for t in self.failed},
            },
        )  # fmt: skip

    def _finished(self, trial: Trained) -> Report:
        numbers = {"loss": trial.loss, "seconds_per_image": trial.seconds_per_image, **_counted(trial)}
        return Report(
            metrics={frechet.NAME: trial.fd, ERROR: trial.error, **numbers}, params=trial.fields,
            tags={"metric": self.metric, "state": "finished", **self.conditions.tags}, curves=self._curves(trial),
        )  # fmt: skip

    def _stopped(self, trial: Stopped) -> Report:
        return Report(
            metrics=_counted(trial), params=trial.fields, curves=self._curves(trial),
            tags={"state": f"stopped at step {trial.step}", "reason": trial.reason},
        )  # fmt: skip

    def _curves(self, trial: Trained | Stopped) -> dict[str, Curve]:
        return {f"train/{self.stopping_metric}": trial.curve} if trial.curve else {}


def _failed(trial: FailedTraining) -> Report:
    return Report(params=trial.fields, tags={"state": "failed", "reason": trial.reason})


def _counted(trial: Trained | Stopped) -> dict[str, float]:
    """Return the numbers of parameters that are known: of the head, earlier sweeps counted none."""
    return {"parameters": trial.parameters} | ({"head_parameters": of} if (of := trial.head_parameters) else {})


def _sizes(trial: Trained | Stopped) -> tuple[str, str]:
    return f"{trial.head_parameters:,}" if trial.head_parameters else "", f"{trial.parameters:,}"


def _last(curve: Curve) -> str:
    return f"{curve[-1][1]:.4g}" if curve else ""
