"""The curves of a training whose workers and driver are killed: each point once, few, and none missing."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from infra.follow import append, logged
from infra.tracking import Tracker
from pipeline import record
from pipeline.record import LiveMetrics, Thinned
from train.results import LOG

MOST = 20


class Server:
    """Keeps the points of a run by metric, as they come."""

    history = Tracker.history

    def __init__(self):
        self.client, self.points, self._last_steps = self, {}, {}

    def open(self, *_):
        return "run"

    def log_batch(self, _, metrics):
        for metric in metrics:
            self.points.setdefault(metric.key, []).append(metric.step)

    def _last_step(self, _):
        return max((step for steps in self.points.values() for step in steps), default=-1)


@pytest.mark.parametrize("seed", range(20))
def test_killed_workers_and_drivers_double_no_point_and_lose_none(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MOST_POINTS", MOST)
    random, server = np.random.default_rng(seed), Server()
    steps, every, saved = int(random.integers(100, 400)), int(random.integers(1, 6)), int(random.integers(7, 40))
    step = SimpleNamespace(name="checkpoint", fingerprint="f", path=tmp_path)
    live, done = None, 0
    while done < steps:
        if live is None or random.random() < 0.5:  # the driver was killed, with what it had not sent; or a worker alone
            live = LiveMetrics(every_seconds=0)
            server._last_steps = {}
            live.follow(server, "parent", step, "commit", steps)
        life = int(random.integers(1, 200))
        for number in range(done + 1, min(done + life, steps) + 1):
            is_saved = number % saved == 0
            if number % every == 0 or is_saved or number == steps:
                line = {"step": number, "time": 1.0, "loss": 1.0} | ({"heldout_loss": 1.0} if is_saved else {})
                line |= {"skipped": 1.0} if random.random() < 0.1 else {}
                append(tmp_path / LOG, line)
                live.every_seconds = 0 if random.random() < 0.3 else float("inf")
                live(line)
            done = number
        done = done if done == steps else done // saved * saved
    server.history("run", Thinned(steps).of(logged(tmp_path / LOG)))
    stride = Thinned(steps).stride
    for name, points in server.points.items():
        assert points == sorted(set(points)), name
        assert len(points) <= MOST, name
    assert server.points["train/loss"][-1] == steps
    assert np.diff([0, *server.points["train/loss"]]).max() <= 2 * stride + every


def test_step_that_is_logged_again_after_its_worker_was_killed_has_no_second_point():
    server = Server()
    lines = [{"step": step, "time": 0.0, "loss": 1.0} for step in (80, 100)] + [{"step": 60, "time": 0.0, "skipped": 1}]
    for _ in range(2):
        server.history("run", lines)
    assert server.points == {"train/loss": [80, 100], "train/skipped": [60]}


@pytest.mark.parametrize("taken", range(6))
def test_process_that_ends_between_two_requests_leaves_no_step_with_some_of_its_numbers(taken):
    """As after a minute's outage: many lines at once. The next process sends those after the last step that is there."""
    server, names = Server(), [f"term {number}" for number in range(17)]
    lines = [{"step": step, "time": 0.0, **dict.fromkeys(names, 1.0)} for step in range(1, 200)]
    left = iter(range(taken))

    def killed(run, metrics):
        if next(left, None) is None:
            raise KeyboardInterrupt
        Server.log_batch(server, run, metrics)

    server.log_batch = killed
    with contextlib.suppress(KeyboardInterrupt):
        server.history("run", lines)
    del server.log_batch
    server._last_steps = {}
    server.history("run", lines)
    assert server.points == {f"train/{name}": list(range(1, 200)) for name in names}
