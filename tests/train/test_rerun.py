"""What a killed training left behind: Ray's list of checkpoints, and folders that nobody goes on from any more."""

import json

import numpy as np
import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from infra.follow import append, logged
from infra.storage import location
from tests.train.test_progress import truncate, weights, write
from train.best import DISTANCE, LOSS, best, keep_if_best
from train.progress import folders
from train.rerun import LIST, begin_like, put_in_order
from train.results import EVALUATIONS, LOG

NAMES = ("step_00000004", "step_00000008", "step_00000012")


@pytest.fixture
def root(tmp_path):
    """Three whole checkpoints, of which Ray's list knows the newer two."""
    for name in NAMES:
        write(tmp_path / name, int(name[-2:]))
    return tmp_path


def listing(*names):
    """Ray's list, as it writes it."""
    result = {"metrics": {"step": 1, "heldout_loss": 0.5}}
    return {
        "ray_version": "2.60.0", "checkpoint_results": [{"checkpoint_dir_name": name, **result} for name in names],
        "checkpoint_report_indices": list(range(len(names))), "latest_checkpoint_result": None,
        "pending_training_results": [], "pending_validation_specs": [], "current_report_index": len(names),
        "validated_checkpoint_dir_names": [], "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        (json.dumps(listing(*NAMES[1:])), True),
        (json.dumps(listing(NAMES[2], "gone")), False),
        (
            json.dumps(
                listing(NAMES[2]) | {"latest_checkpoint_result": {"checkpoint_dir_name": "gone", "metrics": {}}}
            ),
            False,
        ),
        (json.dumps(listing(*NAMES[1:]) | {"checkpoint_report_indices": [0]}), False),
        (json.dumps(listing(*NAMES[1:]) | {"current_report_index": "?"}), False),
        (json.dumps({"checkpoint_results": []}), False),
        (json.dumps(listing(*NAMES))[:100], False),
    ],
)
def test_list_that_ray_could_not_read_is_no_end_of_the_training(listed, kept, root):
    (root / LIST).write_text(listed)
    assert put_in_order(root).name == NAMES[2]
    assert (root / LIST).exists() == kept


@pytest.mark.parametrize("seed", range(30))
def test_list_damaged_anywhere_is_removed_or_is_one_that_ray_reads(seed, root):
    """Whatever a kill or a bad disk left of it: no traceback, and the newest checkpoint stays."""
    random, path = np.random.default_rng(seed), root / LIST
    content = bytearray(json.dumps(listing(*NAMES[1:])).encode())
    for _ in range(random.integers(4)):
        content[random.integers(len(content))] = random.integers(256)
    path.write_bytes(content[: random.integers(len(content) + 1)] if random.random() < 0.5 else content)
    assert put_in_order(root).name == NAMES[2]
    if path.exists():
        state = _CheckpointManagerState.model_validate(json.loads(path.read_bytes()))
        assert all((root / result.checkpoint_dir_name).is_dir() for result in state.checkpoint_results)


def test_older_checkpoints_that_ray_does_not_know_are_removed(root, capsys):
    (root / LIST).write_text(json.dumps(listing(*NAMES[1:])))
    (root / "step_00000006").mkdir()  # a kill while it was written
    (root / "step_00000016").mkdir()
    (root / "step_00000002").mkdir()
    (root / "step_00000002" / "progress.pt").touch()
    put_in_order(root)
    assert {folder.name for folder in folders(root)} == {*NAMES[1:], "step_00000002", "step_00000016"}
    assert "removed 2 older checkpoints" in capsys.readouterr().out


def test_nothing_is_removed_while_no_checkpoint_is_whole(tmp_path):
    for step in (4, 8):
        (tmp_path / f"step_{step:08d}").mkdir()
    assert put_in_order(tmp_path) is None
    assert len(folders(tmp_path)) == 2
    assert put_in_order(tmp_path / "none") is None


def test_longer_training_begins_with_the_last_whole_checkpoint_of_the_shorter_one_and_its_log(tmp_path, capsys):
    short, longer = tmp_path / "short", tmp_path / "longer"
    longer.mkdir()
    for step in (4, 8):
        write(short / "ray_train" / f"step_{step:08d}", step)
        append(short / LOG, {"step": step, "loss": 1.0 / step})
    for _ in range(2):  # killed before its own first checkpoint, and run again
        begin = begin_like(location(short), longer / "ray_train", longer / LOG, "ray_train")
        assert begin == str(short / "ray_train" / "step_00000008")
        assert "the same training as short but longer: going on from its step 8" in capsys.readouterr().out
    assert logged(longer / LOG) == logged(short / LOG)
    truncate(short / "ray_train" / "step_00000008", np.random.default_rng(0))
    assert begin_like(location(short), longer / "ray_train", longer / LOG, "ray_train").endswith("step_00000004")
    assert "damaged checkpoint" in capsys.readouterr().out
    write(longer / "ray_train" / "step_00000009", 9)
    assert not begin_like(location(short), longer / "ray_train", longer / LOG, "ray_train"), "its own progress counts"
    assert not begin_like(None, tmp_path / "other", longer / LOG, "ray_train")


@pytest.mark.parametrize("by", [LOSS, DISTANCE])
def test_best_of_the_shorter_training_and_what_was_measured_of_it_are_the_longer_ones_too(by, tmp_path):
    short, longer = tmp_path / "short", tmp_path / "longer"
    longer.mkdir()
    for step, value in ((4, 0.5), (8, 0.7)):
        write(short / "ray_train" / f"step_{step:08d}", step)
        keep_if_best(short / "ray_train", short / "ray_train" / f"step_{step:08d}", by, value, "500 images")
        append(short / EVALUATIONS, {"step": step, "fd": value, "under": "500 images"})
    root = longer / "ray_train"
    for _ in range(2):
        assert begin_like(location(short), root, longer / LOG, "ray_train", "500 images").endswith("step_00000008")
    assert logged(longer / EVALUATIONS) == logged(short / EVALUATIONS)
    write(root / "step_00000012", 12)
    assert not keep_if_best(root, root / "step_00000012", by, 0.6, "500 images")
    assert (best(root).step, best(root).by) == (4, by)
    assert weights(best(root).folder).eq(4).all()
    truncate(best(short / "ray_train").folder, np.random.default_rng(0))
    begin_like(location(short), tmp_path / "other" / "ray_train", longer / LOG, "ray_train", "500 images")
    assert best(tmp_path / "other" / "ray_train") is None, "a damaged one is not handed on"


@pytest.mark.parametrize(
    ("under", "lines", "kept"), [("500 images", 1, True), ("64 images", 0, False), (None, 1, False)]
)
def test_distances_under_other_conditions_are_not_the_longer_trainings(under, lines, kept, tmp_path):
    short, longer = tmp_path / "short", tmp_path / "longer"
    write(short / "ray_train" / "step_00000004", 4)
    keep_if_best(short / "ray_train", short / "ray_train" / "step_00000004", DISTANCE, 0.5, "500 images")
    append(short / EVALUATIONS, {"step": 4, "fd": 0.5, "under": "500 images"})
    longer.mkdir()
    assert begin_like(location(short), longer / "ray_train", longer / LOG, "ray_train", under)
    assert len(list(logged(longer / EVALUATIONS)) if (longer / EVALUATIONS).exists() else []) == lines
    assert (best(longer / "ray_train") is not None) == kept
