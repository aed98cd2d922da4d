"""The sampling sweep: which settings are tried, and which win."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate.config import DiffusionSteps, Features, Reference, Sampling, Subject
from evaluate.extractors import LITE0
from evaluate.metrics.frechet import NAME
from evaluate.reference import make_reference
from infra.cluster import Compute
from infra.fingerprint import canonical
from infra.storage import location, write_json
from tokenize_jobs.config import TokenizerFile
from tune.config import SamplingSweep
from tune.results import Trial
from tune.sampling_sweep import sampling_sweep, trial_path

SWEEP = SamplingSweep(
    temperature=(0.9, 1.0), cfg_scale=(1.0, 3.0), ar_steps=(4,), step_schedules=((10, 5), (20, 20)), images=64
)
BASE = Sampling(max_timestep=950)


def test_every_combination_is_a_trial_once_and_keeps_what_is_not_searched():
    settings = SWEEP.settings(BASE)
    assert len(settings) == len({canonical(setting).__repr__() for setting in settings}) == 8
    assert {setting.diffusion_steps for setting in settings} == {
        DiffusionSteps(first=10, last=5),
        DiffusionSteps(first=20, last=20),
    }
    assert {setting.max_timestep for setting in settings} == {950}
    own = replace(SWEEP, step_schedules=()).settings(BASE)
    assert {setting.diffusion_steps for setting in own} == {BASE.diffusion_steps}


@pytest.fixture
def finished(tmp_path):
    """A sweep whose trials are all done: trial i has the i-th distance."""
    np.savez(tmp_path / "adm.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    reference, out = location(tmp_path / "reference"), location(tmp_path / "sweep")
    make_reference(
        Reference(features=Features(name=LITE0), statistics=str(tmp_path / "adm.npz")), None, 32, reference, Compute()
    )
    distances = [5.0, 3.0, 9.0, 2.5, 7.0, 2.6, 8.0, 4.0]
    for setting, distance in zip(SWEEP.settings(BASE), distances, strict=True):
        trial = Trial(label=f"{distance}", sampling=setting, numbers={NAME: distance}, images=64, seed=0, seconds=1.0)
        write_json(trial_path(out, setting, SWEEP), canonical(trial))
    subject = Subject("nowhere", TokenizerFile("pixels"), 32)
    return sampling_sweep(SWEEP, BASE, subject, reference, out, Compute()), out


def test_winner_is_the_setting_of_the_smallest_distance(finished):
    result, _ = finished
    assert result.best == SWEEP.settings(BASE)[3]
    assert (result.best_fd, result.best_label) == (2.5, "2.5")
    assert "2.5 at 2.5" in result.headline()


def test_every_trial_is_reported_as_a_run_of_its_own_with_its_conditions(finished):
    result, out = finished
    report = result.report(out)
    assert len(report.trials) == 8
    assert [trial.metrics[NAME] for _, trial in report.trials.values()] == [5.0, 3.0, 9.0, 2.5, 7.0, 2.6, 8.0, 4.0]
    assert {trial.tags["metric"] for _, trial in report.trials.values()} == {"FD (efficientnet-lite0, 64)"}
    assert (result.conditions.images, result.conditions.image_size) == (64, 32)
    assert all(path.exists() for path in report.files)
