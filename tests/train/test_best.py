"""The best progress stays when the newer ones push it out."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest

from tests.train.test_progress import hit, truncate, weights, write
from train import best as module
from train.best import DISTANCE, LOSS, best, keep_if_best
from train.progress import fault, newest_whole
from train.trainer import _write_best


def written(root, step):
    folder = root / f"step_{step:08d}"
    write(folder, step)
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_best_is_that_of_the_smallest_number_and_outlives_what_it_was_kept_from(seed, tmp_path):
    losses = np.random.default_rng(seed).permutation(8).astype(float)
    for step, loss in enumerate(losses):
        keep_if_best(tmp_path, written(tmp_path, step), LOSS, float(loss))
        if step > 1:
            shutil.rmtree(tmp_path / f"step_{step - 2:08d}")
    found = best(tmp_path)
    assert (found.step, found.value) == (losses.argmin(), 0)
    assert weights(found.folder).eq(found.step).all()
    assert len(list(found.folder.parent.iterdir())) == 1
    assert newest_whole(tmp_path).name == "step_00000007", "the best is not taken for the newest"


def test_distance_counts_more_than_a_loss_from_the_first_one_on(tmp_path):
    assert keep_if_best(tmp_path, written(tmp_path, 1), LOSS, 0.1)
    assert keep_if_best(tmp_path, written(tmp_path, 2), DISTANCE, 90.0)
    assert not keep_if_best(tmp_path, written(tmp_path, 3), LOSS, 0.01)
    assert not keep_if_best(tmp_path, written(tmp_path, 3), DISTANCE, 90.0)
    assert keep_if_best(tmp_path, written(tmp_path, 4), DISTANCE, 80.0)
    assert (best(tmp_path).step, best(tmp_path).by) == (4, DISTANCE)


def test_kept_folder_that_is_gone_is_none_and_the_next_one_is_kept(tmp_path):
    keep_if_best(tmp_path, written(tmp_path, 1), LOSS, 0.1)
    shutil.rmtree(tmp_path / "best")
    assert best(tmp_path) is None
    assert keep_if_best(tmp_path, written(tmp_path, 2), LOSS, 0.2)


def test_damaged_best_is_named_and_not_written_as_a_model(tmp_path, capsys):
    keep_if_best(tmp_path, written(tmp_path, 1), LOSS, 0.1)
    truncate(best(tmp_path).folder, np.random.default_rng(0))
    assert _write_best(None, tmp_path, tmp_path) is None
    assert "damaged checkpoint" in capsys.readouterr().out
    assert not (tmp_path / "best" / "model.json").exists()


def test_note_hit_anywhere_stops_no_save_and_names_a_checkpoint_or_none(tmp_path):
    random, note = np.random.default_rng(0), tmp_path / "best.json"
    folders = [written(tmp_path, step) for step in (1, 2)]
    for number in range(300):
        if number % 2:
            if number % 4 != 1:  # else over what is damaged there
                note.unlink(missing_ok=True)
            keep_if_best(tmp_path, folders[number % 2], (LOSS, DISTANCE)[number % 3 == 0], float(random.random()))
        if note.exists() and note.stat().st_size:
            hit(note, random)
        found = best(tmp_path)
        assert found is None or (found.by in (LOSS, DISTANCE) and not fault(found.folder))
    note.write_text("3")
    assert best(tmp_path) is None
    assert keep_if_best(tmp_path, folders[0], DISTANCE, 1e9)


def test_distances_under_other_conditions_are_not_ranked_together(tmp_path):
    assert keep_if_best(tmp_path, written(tmp_path, 1), DISTANCE, 6.0, "500 images")
    assert keep_if_best(tmp_path, written(tmp_path, 2), DISTANCE, 80.0, "another extractor")
    assert not keep_if_best(tmp_path, written(tmp_path, 3), DISTANCE, 81.0, "another extractor")
    assert not keep_if_best(tmp_path, written(tmp_path, 3), LOSS, 0.1)
    assert best(tmp_path).step == 2


def keep_and_be_killed(root, folder, by, value, moment):
    """End as by SIGKILL just before call number `moment` of those that change files."""
    left = iter(range(moment))

    def deadly(call):
        def run(*words, **named):
            if next(left, None) is None:
                os._exit(9)
            return call(*words, **named)

        return run

    for owner, name in ((os, "link"), (module, "write_json"), (shutil, "rmtree")):
        setattr(owner, name, deadly(getattr(owner, name)))
    keep_if_best(root, folder, by, value)


@pytest.mark.parametrize("again", [False, True])
def test_kill_at_any_moment_leaves_the_best_before_or_the_new_one_whole(again, tmp_path):
    """`again`: the checkpoint that is the best by its loss is measured, and is the best by that."""
    killed = 0
    for moment in range(8):
        root = tmp_path / str(moment)
        keep_if_best(root, first := written(root, 1), LOSS, 0.1)
        chosen = first if again else written(root, 2)
        words = root, chosen, DISTANCE, 9.0, moment
        process = multiprocessing.get_context("fork").Process(target=keep_and_be_killed, args=words)
        process.start()
        process.join()
        killed += process.exitcode == 9
        found = best(root)
        assert (found.by, found.step) in ((LOSS, 1), (DISTANCE, 1 if again else 2))
        assert not fault(found.folder)
        keep_if_best(root, chosen, DISTANCE, 8.0)
        assert (best(root).value, len(list((root / "best").iterdir()))) == (8.0, 1)
    assert 4 < killed < 8


def test_distance_that_is_measured_while_a_loss_is_kept_is_not_lost(tmp_path, monkeypatch):
    loss, distance = written(tmp_path, 1), written(tmp_path, 2)
    fork, started = multiprocessing.get_context("fork"), []
    as_it_is = module.write_json

    def beside(path, note):
        """The measurement ends while the worker is about to write its note, which it must not write over."""
        if not started:
            started.append(fork.Process(target=keep_if_best, args=(tmp_path, distance, DISTANCE, 50.0)))
            started[0].start()
            started[0].join(1.0)
        as_it_is(path, note)

    monkeypatch.setattr(module, "write_json", beside)
    keep_if_best(tmp_path, loss, LOSS, 0.1)
    started[0].join()
    assert (best(tmp_path).by, best(tmp_path).step) == (DISTANCE, 2)
    assert not fault(best(tmp_path).folder)
