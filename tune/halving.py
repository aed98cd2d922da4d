"""Trainings side by side with Ray Tune; weak ones are stopped early by asynchronous halving on our own step.

A trial is a small process that makes a checkpoint, whose workers Ray Train takes beside it. What it has trained before
is told first, from its log: of a sweep whose driver was killed, what was stopped stays stopped, and what went on from a
step is not stopped there now, in whichever order it is told.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from upath import UPath

from evaluate.subject import Subject
from infra.abandoned import freeing_abandoned
from infra.cluster import Workers
from infra.console import Progress, stage
from infra.fingerprint import canonical
from infra.follow import logged
from infra.from_json import from_json
from infra.storage import write_json
from train.results import CheckpointResult
from tune.training_results import Stopped

STEP, DONE, WENT_ON = "step", "is_done", "went_on"
OnLine = Callable[[Mapping[str, Any]], None]
# a trial computes nothing: its workers have cores of their own, and a part of a core would leave too little for them
_BESIDE = {"CPU": 0, "memory": 1}


@dataclass(frozen=True)
class Training:
    """One trial: what is trained, how, and where it then lies."""

    label: str
    fields: Mapping[str, str]
    """What of the recipe it replaces, by dotted name."""
    subject: Subject
    identity: str
    """Of its checkpoint."""
    steps: int
    parameters: int
    head_parameters: int
    log: str
    is_made: bool
    """Its checkpoint is there."""
    make: Callable[[OnLine], CheckpointResult]
    """Finds or makes the checkpoint, in whichever process, and tells each line of its log."""


@dataclass(frozen=True)
class Rule:
    """Which trainings go on from a step: about one in `reduction` of those that came to it, by a metric of theirs."""

    metric: str
    """In a training's log."""
    steps: int
    grace: int
    """Steps before the first decision; the next is `reduction` times as late."""
    reduction: int

    @property
    def rungs(self) -> list[int]:
        """The steps at which it is decided."""
        if not self.reduction:
            return []
        count = math.ceil(math.log(self.steps / self.grace, self.reduction) - 1e-9)
        return [self.grace * self.reduction**place for place in range(count)]

    def scheduler(self) -> Any:  # noqa: ANN401
        """Return Tune's."""
        if not self.rungs:
            return FIFOScheduler()
        return _Halving(
            time_attr=STEP, metric=self.metric, mode="min", max_t=self.rungs[-1] + 1, grace_period=self.grace,
            reduction_factor=self.reduction, stop_last_trials=False,
        )  # fmt: skip

    def __str__(self) -> str:
        """Say it in words."""
        if not self.rungs:
            return "no training is stopped early"
        rungs = ", ".join(map(str, self.rungs))
        return f"at step {rungs} about one in {self.reduction} goes on, by {self.metric} (asynchronous halving)"


class _Halving(ASHAScheduler):
    """Tune's, for trainings of which some were at it before."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ANN401
        """Return whether a training goes on: where it did already, it does."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if decision == self.STOP and result.get(WENT_ON) else decision


@dataclass(frozen=True)
class Ends:
    """How the trials of a sweep ended: each in one of these, by its place."""

    finished: Sequence[int]
    stopped: Mapping[int, Stopped]
    failed: Mapping[int, str]


def at_once(workers: Workers, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trainings of so many workers these nodes hold at once; one where they first have to grow."""
    return max(1, workers.held_by(nodes) // workers.count)


def run_trainings(trainings: Sequence[Training], rule: Rule, side_by_side: int, out: UPath) -> Ends:
    """Train, at most so many side by side, and return how each ended; `out` keeps what was stopped, and Tune's files.

    A training that fails is tried once more, from its newest checkpoint, and stops no other.
    """
    before = {place: found for place, training in enumerate(trainings) if (found := _read(out, training))}
    told = _Told(trainings, rule, out, before)
    trainable = ray.tune.with_parameters(_trial, trainings=trainings, metric=rule.metric, stopped=set(before))
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, _BESIDE),
        param_space={"trial": ray.tune.grid_search(list(range(len(trainings))))},
        tune_config=ray.tune.TuneConfig(scheduler=rule.scheduler(), max_concurrent_trials=side_by_side),
        run_config=ray.tune.RunConfig(
            name="ray_tune", storage_path=str(out), verbose=0, callbacks=[told],
            failure_config=ray.tune.FailureConfig(max_failures=1),
        ),
    )  # fmt: skip
    with freeing_abandoned():
        results = tuner.fit()
    failed = {result.config["trial"]: _reason(result.error) for result in results if result.error is not None}
    others = set(range(len(trainings))) - set(failed)
    finished = sorted(others - set(told.stopped))
    return Ends(finished, {place: told.stopped[place] for place in sorted(others & set(told.stopped))}, failed)


def _trial(config: dict[str, int], trainings: Sequence[Training], metric: str, stopped: set[int]) -> None:
    training, trial = trainings[config["trial"]], threading.current_thread()
    last = {STEP: 0, metric: math.nan}

    def tell(line: Mapping[str, Any], *, went_on: bool = False) -> None:
        nonlocal last
        if metric not in line or line[STEP] <= last[STEP]:
            return
        last = {STEP: line[STEP], metric: line[metric]}
        if line[STEP] < training.steps:  # what is trained to its end is not stopped before it is written
            try:
                ray.tune.report({**last, DONE: False, WENT_ON: went_on})
            except SystemExit:  # Tune's way to end the trial's thread; another follows a log, until the process ends
                if threading.current_thread() is trial:
                    raise

    told = [line for line in logged(Path(training.log)) if metric in line]
    for line in told:
        tell(line, went_on=line[STEP] < told[-1][STEP])
    if config["trial"] not in stopped:
        training.make(tell)
    ray.tune.report({**last, DONE: config["trial"] not in stopped})


class _Told(ray.tune.Callback):
    """Says how far the trainings are, and writes down which were stopped as soon as they are."""

    def __init__(self, trainings: Sequence[Training], rule: Rule, out: UPath, before: Mapping[int, Stopped]) -> None:
        self.trainings, self.rule, self.out, self.stopped = trainings, rule, out, dict(before)
        self.steps, self.ended, self.best = [0] * len(trainings), 0, (math.inf, "")
        self.progress = Progress("sweep", sum(training.steps for training in trainings), "steps")

    def on_trial_result(self, **info: Any) -> None:  # noqa: ANN401
        """Take what a trial told."""
        place, result = info["trial"].config["trial"], info["result"]
        self.steps[place] = int(result[STEP])
        self.best = min(self.best, (result.get(self.rule.metric, math.inf), self.trainings[place].label))
        self._tell()

    def on_trial_complete(self, **info: Any) -> None:  # noqa: ANN401
        """Take the end of a trial: by itself, or stopped."""
        place, last = info["trial"].config["trial"], info["trial"].last_result
        training = self.trainings[place]
        if not (last.get(DONE) or training.is_made or place in self.stopped):
            step, value = int(last[STEP]), float(last[self.rule.metric])
            reason = f"{self.rule.metric} {value:.4g} was not among the best in {self.rule.reduction} at step {step}"
            self.stopped[place] = Stopped(
                label=training.label, fields=dict(training.fields), checkpoint=training.identity,
                parameters=training.parameters, head_parameters=training.head_parameters, step=step, value=value,
                reason=reason,
            )  # fmt: skip
            write_json(_stopped_path(self.out, training), canonical(self.stopped[place]))
        if place in self.stopped:
            stage("sweep", f"stopped {training.label}: {self.stopped[place].reason}")
        self._end(place)

    def on_trial_error(self, **info: Any) -> None:  # noqa: ANN401
        """Take the failure of a trial."""
        place = info["trial"].config["trial"]
        stage("sweep", f"failed {self.trainings[place].label}")
        self._end(place)

    def _end(self, place: int) -> None:
        self.steps[place], self.ended = self.trainings[place].steps, self.ended + 1
        self._tell()

    def _tell(self) -> None:
        value, label = self.best
        best = f", best {self.rule.metric} {value:.4g} ({label})" if math.isfinite(value) else ""
        self.progress.update(sum(self.steps), f", {self.ended}/{len(self.trainings)} trainings ended{best}")


def _stopped_path(out: UPath, training: Training) -> UPath:
    return out / "stopped" / f"{training.identity}.json"


def _read(out: UPath, training: Training) -> Stopped | None:
    path = _stopped_path(out, training)
    return from_json(path.read_text(), Stopped, str(path)) if path.exists() else None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)
