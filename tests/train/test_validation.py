"""What is measured of checkpoints: on which core, how often, and how it is told."""

import json
import time

import pytest
import ray.train

from infra.cluster import Compute, Workers, connected
from infra.errors import InputError
from infra.storage import location
from train import validation
from train.results import EVALUATIONS, CheckpointResult, TrainingProgress
from train.validation import Validation, _validate


def measure(model, step, cores):
    return {"fd": float(step)}


def test_core_or_gpu_is_left_free_unless_they_were_chosen():
    on_core = Validation(measure, 10)
    assert on_core.beside(Workers(1, 4, 0), chosen=False) == Workers(1, 3, 0)
    assert on_core.beside(Workers(1, 4, 0), chosen=True) == Workers(1, 4, 0)
    assert on_core.beside(Workers(8, 4, 1), chosen=False) == Workers(8, 3, 1)
    assert on_core.beside(Workers(8, 1, 1), chosen=False) == Workers(8, 1, 1)
    on_gpu = Validation(measure, 10, gpus=1)
    assert on_gpu.beside(Workers(8, 4, 1), chosen=False) == Workers(7, 4, 1)
    assert on_gpu.beside(Workers(8, 4, 1), chosen=True) == Workers(8, 4, 1)
    with pytest.raises(InputError, match="the only GPU"):
        on_gpu.beside(Workers(1, 4, 1), chosen=False)
    with pytest.raises(InputError, match="meanwhile"):
        on_core.beside(Workers(1, 1, 0), chosen=False)


def test_checkpoint_is_passed_over_when_several_newer_ones_wait(tmp_path):
    for step in (10, 20, 30, 40):
        (tmp_path / f"step_{step:08d}").mkdir()
    checkpoint, log = ray.train.Checkpoint(str(tmp_path / "step_00000010")), tmp_path / "evaluations.jsonl"
    assert _validate(checkpoint, 10, Validation(measure, 10), None, tmp_path, log) == {}
    assert json.loads(log.read_text())["failed"].endswith("at step 40")


def hang(*_):
    time.sleep(600)


@pytest.mark.ray
def test_measurement_that_hangs_is_ended_and_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_measured", hang)
    checkpoint, log = ray.train.Checkpoint(str(tmp_path / "step_00000010")), tmp_path / "evaluations.jsonl"
    with connected(Compute()):
        assert _validate(checkpoint, 10, Validation(measure, 10, longest=1), None, tmp_path, log) == {}
    assert json.loads(log.read_text())["failed"] == "TimeoutError: no number after 1 s"


def test_measurements_are_told_handed_on_and_curves_of_the_training(tmp_path, capsys):
    handed = []
    tell = TrainingProgress(100, handed.append)
    lines = [
        {"step": step, "fd": 100.0 / step, "fd_raw": 200.0 / step, "time": 0.0, "under": "a1"} for step in (10, 20)
    ]
    failed = {"step": 30, "failed": "ValueError: no"}
    for line in (*lines, failed):
        tell(line)
    assert handed == lines
    said = capsys.readouterr().out
    assert "step 10 measured: fd 10, fd_raw 20" in said
    assert "step 30 could not be measured: ValueError: no" in said
    otherwise = {"step": 5, "fd": 9.0, "time": 0.0, "under": "b2"}
    (tmp_path / EVALUATIONS).write_text("".join(json.dumps(line) + "\n" for line in (otherwise, *lines, failed)))
    result = CheckpointResult(train_steps=1, images_seen=1, parameters=1, images=1, images_held_back=0, last={})
    curves = result.report(location(tmp_path)).curves
    assert curves == {"fd": [(10, 10.0), (20, 5.0)], "fd_raw": [(10, 20.0), (20, 10.0)]}
