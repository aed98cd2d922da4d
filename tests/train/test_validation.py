"""What is measured of checkpoints: on which core, how often, and how it is told."""

import json

import pytest

from infra.cluster import Workers
from infra.errors import InputError
from infra.storage import location
from train.results import EVALUATIONS, CheckpointResult, TrainingProgress
from train.validation import Validation


def measure(model, step, cores):
    return {"fd": float(step)}


def test_core_is_left_free_unless_cores_were_chosen_or_a_gpu_measures():
    validation = Validation(measure, 10)
    assert validation.beside(Workers(1, 4, 0), chosen=False) == Workers(1, 3, 0)
    assert validation.beside(Workers(1, 4, 0), chosen=True) == Workers(1, 4, 0)
    assert Validation(measure, 10, gpus=1).beside(Workers(8, 4, 1), chosen=False) == Workers(8, 4, 1)
    with pytest.raises(InputError, match="meanwhile"):
        validation.beside(Workers(1, 1, 0), chosen=False)


def test_measurements_are_told_handed_on_and_curves_of_the_training(tmp_path, capsys):
    handed = []
    tell = TrainingProgress(100, handed.append)
    lines = [{"step": step, "fd": 100.0 / step, "fd_raw": 200.0 / step, "time": 0.0} for step in (10, 20)]
    failed = {"step": 30, "failed": "ValueError: no"}
    for line in (*lines, failed):
        tell(line)
    assert handed == lines
    said = capsys.readouterr().out
    assert "step 10 measured: fd 10, fd_raw 20" in said
    assert "step 30 could not be measured: ValueError: no" in said
    (tmp_path / EVALUATIONS).write_text("".join(json.dumps(line) + "\n" for line in (*lines, failed)))
    result = CheckpointResult(train_steps=1, images_seen=1, parameters=1, images=1, images_held_back=0, last={})
    curves = result.report(location(tmp_path)).curves
    assert curves == {"fd": [(10, 10.0), (20, 5.0)], "fd_raw": [(10, 20.0), (20, 10.0)]}
