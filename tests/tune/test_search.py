"""Trials with Ray Tune: the planted optimum is found, and each trial ends with a record. Measured by a formula."""

import os
from dataclasses import dataclass

import pytest

from evaluate.config import Sampling
from infra.cluster import Compute, Stage, connected
from infra.console import Progress
from infra.storage import location
from tune.config import SamplingSweep
from tune.search import Listed, Optuna, run_trials

BASE = Sampling()
SWEEP = SamplingSweep(
    temperature=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2), cfg_scale=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), ar_steps=(),
)  # fmt: skip
BEST = (0.9, 5.0)


@dataclass(frozen=True)
class Bowl:
    """A distance whose smallest value is known; some settings fail, by an exception or with their process."""

    fails: tuple[float, ...] = ()
    dies: tuple[float, ...] = ()

    def __call__(self, sampling):
        if sampling.temperature in self.dies:
            os._exit(1)
        if sampling.temperature in self.fails:
            raise ValueError(f"no images at temperature {sampling.temperature}")
        distance = (sampling.temperature - BEST[0]) ** 2 * 30 + (sampling.cfg_scale - BEST[1]) ** 2
        return {"fd": distance, "seconds_per_image": 1.0}


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workers():
    with connected(Compute(generate=Stage(workers=2, cpus=1, gpus=0))) as cluster:
        yield cluster.generate


def run(search, measure, workers, folder, **options):
    progress = Progress("sweep", len(search), "trials")
    return run_trials(search, measure, workers, location(folder / "ray_tune"), progress, **options)


def best_of(ended):
    finished = [trial.sampling for trial in ended if trial.state == "finished"]
    return min(finished, key=lambda sampling: Bowl()(sampling)["fd"])


def test_optuna_comes_near_the_planted_optimum_in_half_as_many_trials_as_there_are_combinations(workers, tmp_path):
    ended = run(Optuna(SWEEP.axes(), BASE, trials=32, seed=0), Bowl(), workers, tmp_path)
    assert len(ended) == 32 < len(SWEEP.settings(BASE))
    best = best_of(ended)
    assert Bowl()(best)["fd"] <= 1.5
    half = len(ended) // 2
    early, late = (sum(Bowl()(t.sampling)["fd"] for t in part) / len(part) for part in (ended[:half], ended[half:]))
    assert late < early  # it learns


def test_every_planned_trial_ends_with_one_record_whatever_fails_and_the_best_is_found(workers, tmp_path):
    planned = tuple(SamplingSweep(temperature=(0.8, 0.9, 1.0, 1.1), cfg_scale=(4.0, 5.0), ar_steps=()).settings(BASE))
    ended = run(Listed(planned), Bowl(fails=(0.8,), dies=(1.1,)), workers, tmp_path)
    assert len(ended) == len(planned)
    assert {trial.sampling for trial in ended} == set(planned)
    states = {(trial.sampling.temperature, trial.state) for trial in ended}
    assert states == {(0.8, "failed"), (0.9, "finished"), (1.0, "finished"), (1.1, "failed")}
    reasons = {trial.reason for trial in ended if trial.sampling.temperature == 0.8}
    assert reasons == {"ValueError: no images at temperature 0.8"}
    assert all(trial.reason for trial in ended if trial.state == "failed")
    assert (best_of(ended).temperature, best_of(ended).cfg_scale) == BEST


def test_no_trial_is_begun_after_the_minutes_are_spent(workers, tmp_path):
    planned = tuple(SWEEP.settings(BASE)[:6])
    ended = run(Listed(planned), Bowl(), workers, tmp_path, minutes=1e-9)
    assert [(trial.state, trial.reason) for trial in ended] == [("stopped", "not begun within 1e-09 minutes")] * 6
