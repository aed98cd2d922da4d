"""Which checkpoint a training goes on from: the newest that is whole, whatever happened to those after it."""

import numpy as np
import pytest
import torch

from train.progress import PROGRESS, RECORD, folder_for, newest_whole, read_progress, step_of, write_progress


@pytest.fixture
def root(tmp_path):
    for step in (4, 8, 12):
        write_progress(tmp_path / f"step_{step:08d}", {"model": {"w": torch.full((50,), float(step))}})
    return tmp_path


def truncate(folder, random):
    content = (folder / PROGRESS).read_bytes()
    (folder / PROGRESS).write_bytes(content[: random.integers(len(content))])


def flip(folder, random):
    content = bytearray((folder / PROGRESS).read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    (folder / PROGRESS).write_bytes(content)


def lose_record(folder, random):
    (folder / RECORD).unlink()


def tear_record(folder, random):
    content = (folder / RECORD).read_bytes()
    (folder / RECORD).write_bytes(content[: random.integers(len(content) - 2)])


def lose_all(folder, random):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damage", [truncate, flip, lose_record, tear_record, lose_all])
def test_damaged_checkpoint_is_named_and_the_one_before_it_taken(damage, seed, root):
    damage(root / "step_00000012", np.random.default_rng(seed))
    told = []
    folder = newest_whole(root, told.append)
    assert step_of(folder) == 8
    assert read_progress(folder)["model"]["w"].eq(8).all()
    assert len(told) == 1
    assert "step_00000012" in told[0]


def test_newest_is_taken_in_silence_where_all_are_whole(root):
    told = []
    assert step_of(newest_whole(root, told.append)) == 12
    assert not told
    assert newest_whole(root / "nothing") is None


def test_step_that_is_made_again_has_a_folder_of_its_own_that_counts_as_newer(root):
    flip(root / "step_00000012", np.random.default_rng(0))
    for count in range(1, 12):
        name = folder_for(root, 12)
        assert name == f"step_00000012-{count}"
        write_progress(root / name, {"model": {"w": torch.full((50,), float(100 + count))}})
        assert newest_whole(root).name == name
    assert folder_for(root, 16) == "step_00000016"
