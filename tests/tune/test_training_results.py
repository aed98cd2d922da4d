"""What a sweep of trainings says: sizes of the head and of the whole model beside distance, seconds and loss."""

import json
from dataclasses import replace

import pytest

from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import location
from tests.tune.test_results import CONDITIONS
from tune.page import write_training_page
from tune.training_figures import losses
from tune.training_results import FailedTraining, Stopped, Trained, TrainingSweepResult

WIDE = Trained(
    label="head.width 64", checkpoint="wide", parameters=54_321, head_parameters=12_345, loss=0.5, fd=20.0, error=1.0,
    seconds_per_image=0.25, train_steps=36, curve=((12, 0.7), (36, 0.4)),
)  # fmt: skip
NARROW = Stopped(
    label="head.width 32", checkpoint="narrow", parameters=43_210, head_parameters=1_234, step=12, value=0.8,
    reason="so", curve=((12, 0.8),),
)  # fmt: skip
FAILED = FailedTraining(label="head.width 16", reason="out of memory")
RESULT = TrainingSweepResult(
    metric="FD", conditions=CONDITIONS, trials=(WIDE,), stopped=(NARROW,), failed=(FAILED,),
    stopping_metric="heldout_mse", timed_batch=48,
)  # fmt: skip


def test_table_has_the_parameters_of_the_head_beside_those_of_the_model_the_distance_the_seconds_and_the_loss():
    lines = [line.split("  ") for line in RESULT.table().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["training", "of the head", "parameters", "FD", "seconds an image", "heldout_mse"] in cells
    assert ["head.width 64", "12,345", "54,321", "20 ± 1", "0.25", "0.4"] in cells
    assert ["head.width 32", "1,234", "43,210", "stopped at step 12", "0.8"] in cells


def test_page_and_runs_have_the_parameters_of_the_head(tmp_path):
    result = write_training_page(RESULT, location(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert all(of in text for of in ("12,345", "54,321", "1,234", "43,210", "48 images at once"))
    runs = {name: of.metrics for name, of in result.report(location(tmp_path)).trials.values()}
    assert [runs[of.label].get("head_parameters") for of in (WIDE, NARROW, FAILED)] == [12_345, 1_234, None]


def test_curve_of_one_point_can_be_seen():
    figure = losses(replace(RESULT, trials=(replace(WIDE, curve=((36, 0.4),)),), stopped=()))
    assert all(line.get_marker() not in ("", "None", None) for line in figure.axes[0].lines)


@pytest.mark.parametrize("of", [WIDE, NARROW])
def test_record_of_an_earlier_sweep_without_parameters_of_the_head_is_read_and_none_are_told(of):
    tree = canonical(of, identity=False)
    del tree["head_parameters"]
    read = from_json(json.dumps(tree), type(of), "here")
    assert read == replace(of, head_parameters=0)
    result = replace(RESULT, **({"trials": (read,)} if of is WIDE else {"stopped": (read,)}))
    runs = {name: run.metrics for name, run in result.report(location("x")).trials.values()}
    assert "head_parameters" not in runs[of.label]
