"""Trainings side by side with Ray Tune: weak ones are stopped, and each ends with a record. Losses are a formula."""

import itertools
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from ray.tune.experiment import Trial

from evaluate.subject import Subject
from infra.cluster import Compute, Stage, Workers, connected
from infra.follow import append
from infra.storage import location
from tokenize_jobs.config import TokenizerFile
from tune.halving import WENT_ON, Rule, Training, at_once, run_trainings

RULE = Rule("heldout_mse", 36, 4, 3)
SUBJECT = Subject("", TokenizerFile("pixels"), 4)


@dataclass(frozen=True)
class Falling:
    """A training whose loss falls to `floor`, a checkpoint every 4 of 36 steps; it goes on from its log."""

    log: str
    floor: float
    waits_for: tuple[str, ...] = ()
    """Logs that have to be begun before it ends."""
    fails: bool = False
    dies_once: bool = False

    def __call__(self, tell):
        if self.fails:
            raise RuntimeError("training diverged: so")
        lines = Path(self.log).read_text().splitlines() if Path(self.log).exists() else []
        for step in range(4 * len(lines) + 4, 37, 4):
            time.sleep(0.05)
            line = {"step": step, "heldout_mse": self.floor + 1 / step}
            append(Path(self.log), line)
            tell(line)
            while not all(Path(log).exists() for log in self.waits_for):
                time.sleep(0.05)
            if self.dies_once and step == 8:
                os._exit(1)


def trainings(folder, floors, **of):
    return [
        Training(
            label=f"floor {floor}", fields={}, subject=SUBJECT, identity=f"floor{floor}", steps=36, parameters=2,
            head_parameters=1, log=str(folder / f"{floor}.jsonl"), is_made=False, make=Falling(str(folder / f"{floor}.jsonl"), floor, **of),
        )
        for floor in floors
    ]  # fmt: skip


def steps(folder, floor):
    return [json.loads(line)["step"] for line in (folder / f"{floor}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cluster():
    with connected(Compute(generate=Stage(workers=2, cpus=1, gpus=0))) as found:
        yield found


@pytest.mark.ray
def test_weak_training_is_stopped_at_a_rung_for_good_and_the_best_is_trained_whole_once(cluster, tmp_path):
    floors = (0.1, 0.9)  # one after the other: the best sets the bar
    ends = run_trainings(trainings(tmp_path, floors), RULE, 1, location(tmp_path))
    assert ends.finished == [0]
    assert {place: of.step for place, of in ends.stopped.items()} == {1: 4}
    assert "not among the best in 3 at step 4" in ends.stopped[1].reason
    again = run_trainings(trainings(tmp_path, floors), RULE, 2, location(tmp_path))
    assert (again.finished, dict(again.stopped)) == (ends.finished, dict(ends.stopped))
    assert steps(tmp_path, 0.1) == list(range(4, 37, 4))
    assert steps(tmp_path, 0.9)[-1] < 36


@pytest.mark.ray
def test_a_training_that_fails_or_whose_process_dies_stops_no_other(cluster, tmp_path):
    (diverging,) = trainings(tmp_path, (0.2,), fails=True)
    (dying,) = trainings(tmp_path, (0.3,), dies_once=True)
    (well,) = trainings(tmp_path, (0.4,), waits_for=(dying.log,))  # side by side, or never
    dying = replace(dying, make=replace(dying.make, waits_for=(well.log,)))
    rule = Rule("heldout_mse", 36, 4, 0)
    ends = run_trainings([diverging, dying, well], rule, 2, location(tmp_path))
    assert (ends.finished, dict(ends.stopped)) == ([1, 2], {})
    assert ends.failed == {0: "RuntimeError: training diverged: so"}
    assert steps(tmp_path, 0.3) == steps(tmp_path, 0.4) == list(range(4, 37, 4))


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (Workers(1, 1, 0), [{"CPU": 2}], 2),
        (Workers(1, 2, 0), [{"CPU": 2}], 1),
        (Workers(4, 4, 1), [{"CPU": 64, "GPU": 8}], 2),
        (Workers(8, 4, 1), [{"CPU": 16, "GPU": 4}] * 5, 2),
        (Workers(8, 4, 1), [{"CPU": 16}], 1),
    ],
)
def test_as_many_trainings_run_at_once_as_the_nodes_hold(workers, nodes, expected):
    assert at_once(workers, nodes) == expected


@pytest.mark.parametrize("steps", [1, 7, 36, 2000, 2007, 250_000])
@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_every_decision_comes_before_the_end_and_each_is_as_many_times_later(steps, reduction):
    for grace in {1, math.ceil(steps / reduction**2)}:
        rungs = Rule("loss", steps, grace, reduction).rungs
        assert all(rung < steps for rung in rungs)
        assert all(after == reduction * before for before, after in itertools.pairwise(rungs))
        assert not rungs or rungs[-1] * reduction >= steps


def test_what_went_on_from_a_step_before_is_not_stopped_there_when_it_is_told_again_in_another_order():
    def told(went_on):
        scheduler, decisions = RULE.scheduler(), []
        for place, loss in enumerate((0.1, 0.2, 0.9)):
            trial = Trial("training", stub=True, trial_id=str(place))
            scheduler.on_trial_add(None, trial)
            line = {"step": 4, "heldout_mse": loss, "training_iteration": 1, WENT_ON: went_on}
            decisions.append(scheduler.on_trial_result(None, trial, line))
        return decisions

    assert told(went_on=False)[0] == "CONTINUE"
    assert told(went_on=False)[2] == "STOP"
    assert told(went_on=True) == ["CONTINUE"] * 3
