"""What a training does when Ray Train ends it: failures count since the last progress; what cannot be mended is told."""

import signal
from types import SimpleNamespace

import pytest
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from infra.cluster import Workers
from infra.errors import InputError
from infra.storage import location
from tests.small_model import small
from tests.train.test_progress import write
from train import loop, trainer
from train.card import ModelCard
from train.loop import PREEMPTED, REFUSED, train_worker
from train.progress import newest_whole, step_of
from train.trainer import Group, _finished, _fit, _stopping
from train.validation import STOP

DIED = ray.train.WorkerGroupError("a worker died", {0: RuntimeError("killed")})
FULL = ray.train.ControllerError(OSError(28, "No space left on device"))
NO_NODES = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))
REFUSES = ray.train.WorkerGroupError(
    "two workers failed", {0: RuntimeError("closed by peer"), 1: InputError("a.parquet: bad")}
)
DONE, LEAVES = {"start": 0}, {PREEMPTED: 7}


def fitted(root, monkeypatch, *tries):
    """Train where each of Ray's tries comes to a step (0: no progress) and ends so; returns what it says, and the tries left."""
    left = list(tries)

    def fit():
        step, end = left.pop(0)
        if step:
            write(root / f"step_{step:08d}", step)
        if isinstance(end, Exception):
            raise end
        return SimpleNamespace(return_value=end)

    monkeypatch.setattr(trainer, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    job = SimpleNamespace(progress=str(root), start=None, begin="")
    return _fit(job, Group(Workers(2, 1, 0)), root, None), left


@pytest.mark.parametrize("failure", [DIED, FULL])
def test_failures_that_are_followed_by_progress_are_no_end(failure, tmp_path, monkeypatch, capsys):
    tries = [(step, failure) for step in (4, 8, 12, 16, 20, 24)]
    assert fitted(tmp_path, monkeypatch, *tries, (28, DONE)) == (DONE, [])
    assert step_of(newest_whole(tmp_path)) == 28
    said = capsys.readouterr().out
    assert "going on from step 24" in said
    assert ("failed 3 times" in said) == (failure is DIED), "the controller fails once"


@pytest.mark.parametrize("tries", [[(0, DIED)], [(4, DIED), (0, DIED)], [(4, DIED), (8, DIED), (0, DIED)], [(0, FULL)]])
def test_failures_without_progress_are_the_end_and_say_why(tries, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"training failed: [\s\S]*(a worker died|No space left)"):
        fitted(tmp_path, monkeypatch, *tries, (0, DONE))


def test_nodes_that_are_not_there_and_nodes_that_leave_are_no_failures(tmp_path, monkeypatch, capsys):
    tries = [(0, NO_NODES)] * 9 + [(4, LEAVES)] * 9
    assert fitted(tmp_path, monkeypatch, *tries[:10], (8, DONE)) == (DONE, [])
    said = capsys.readouterr().out
    assert said.count("waiting for them") == 9
    assert "saved after step 7, going on elsewhere" in said


def test_input_that_one_of_several_workers_refuses_is_the_end_and_the_message(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a\.parquet: bad"):
        fitted(tmp_path, monkeypatch, (4, REFUSES), (8, DONE))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("begins", [False, True])
def test_worker_that_refuses_its_input_returns_alone_and_fails_among_others_who_wait_for_it(begins, world, monkeypatch):
    """A worker that returned would leave the others in a sum until its time limit, and again in each of Ray's tries."""

    def refuse(*_):
        raise InputError("a.parquet: bad")

    context = SimpleNamespace(get_world_rank=lambda: world - 1, get_world_size=lambda: world)
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop.ray.train.torch, "get_device", lambda: None)
    monkeypatch.setattr(loop, "_Worker", (lambda *_: SimpleNamespace(train=refuse)) if begins else refuse)
    if world == 1:
        assert train_worker({"job": None}) == {REFUSED: "a.parquet: bad"}
        return
    with pytest.raises(InputError, match=r"a\.parquet: bad"):
        train_worker({"job": None})


@pytest.mark.parametrize("asked", [False, True])
def test_process_that_is_asked_to_end_when_the_last_step_is_taken_makes_no_step_after_it(asked, tmp_path, capsys):
    """While the last checkpoints are measured, say. An evaluation would go on for hours."""
    card = ModelCard(
        model=small(), latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=8, images_seen=8, ema_decay=0.9,
    )  # fmt: skip
    write(tmp_path / "step_00000008", 8)
    with _stopping(tmp_path / STOP):
        if asked:
            signal.raise_signal(signal.SIGTERM)
    words = card, location(tmp_path / "out"), tmp_path / "log", tmp_path, {"images": 8, "images_held_back": 0}
    if not asked:
        assert _finished(*words).train_steps == 8
        return
    with pytest.raises(KeyboardInterrupt):
        _finished(*words)
    assert "stopped after step 8, where the next run goes on" in capsys.readouterr().out
