"""The log tells how long the device waited for data, not how long the host did; the device is simulated."""

from types import SimpleNamespace

import pytest
import torch

from infra.follow import logged
from train import log as module
from train.config import Train
from train.log import Log
from train.loop import _Worker

STEP = 1.0
"""Seconds that the device takes for one."""


class Machine:
    """A host's clock, and a device that does what it is told in order, beside the host."""

    def __init__(self) -> None:
        self.now, self.busy_until, self.waited = 0.0, 0.0, 0

    def launch(self, seconds):
        self.busy_until = max(self.now, self.busy_until) + seconds

    def event(self, **_):
        machine = self

        class Event:
            def record(self):
                self.at = max(machine.now, machine.busy_until)

            def synchronize(self):
                machine.waited += self.at > machine.now

            def elapsed_time(self, later):
                return 1000 * (later.at - self.at)

        return Event()


def waiting_told(tmp_path, monkeypatch, device, waits):
    machine = Machine()
    monkeypatch.setattr(module.time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)

    def items():
        for seconds in waits:
            machine.now += seconds
            yield seconds

    log = Log(tmp_path / "log", 0, 8, 1.0, torch.device(device), 1)
    for _ in log.timing(items()):
        machine.launch(STEP)
        if device == "cpu":
            machine.now = machine.busy_until
    assert not machine.waited, "the host never waits for the device between steps"
    machine.now = machine.busy_until  # the terms were fetched
    log.write(len(waits), {"loss": 1.0})
    return logged(tmp_path / "log")[0]["data_seconds"]


WAITS = [([0.4] * 5, 0.4), ([0.0] * 5, 0.0), ([0.0, 0.0, 0.0, 5.0], 2.0), ([0.5, 1.5, 1.5], 1.5)]


@pytest.mark.parametrize(("waits", "idle"), WAITS)
def test_host_that_waits_while_the_device_is_busy_does_not_count(waits, idle, tmp_path, monkeypatch):
    assert waiting_told(tmp_path, monkeypatch, "cuda", waits) == pytest.approx(idle)


@pytest.mark.parametrize(("waits", "_"), WAITS)
def test_processor_waits_whenever_its_host_does(waits, _, tmp_path, monkeypatch):
    assert waiting_told(tmp_path, monkeypatch, "cpu", waits) == pytest.approx(sum(waits))


def test_steps_that_the_device_has_still_to_do_are_not_told_as_time_of_the_checkpoint():
    order = []
    worker = SimpleNamespace(
        job=SimpleNamespace(config=Train(checkpoint_every=3, log_every=20)), log=None,
        watch=SimpleNamespace(fetch=lambda: order.append("waited for the device") or {}),
        _heldout_losses=lambda: order.append("loss on held-out images") or {}, _asked_to_leave=lambda _: "",
        _is_measured=lambda _: False, model=None, ema=None, optimization=None,
        saver=SimpleNamespace(save=lambda *_, **__: order.append("checkpoint") or 0.0),
    )  # fmt: skip
    _Worker._after(worker, 3, 0.1)
    assert order == ["waited for the device", "loss on held-out images", "checkpoint"]


def test_skipped_steps_of_lines_that_the_disk_did_not_take_are_counted_in_the_next(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    log = Log(tmp_path / "log", 0, 8, 1.0, torch.device("cpu"), 1)
    with monkeypatch.context() as patched:
        patched.setattr(module, "append", full)
        log.write(20, {"loss": 1.0, "skipped": 2, "skipped_step": 13})
        log.write(40, {"loss": 1.0})
    log.write(60, {"loss": 1.0, "skipped": 1, "skipped_step": 51})
    log.write(80, {"loss": 1.0})
    told = [(line["step"], line.get("skipped"), line.get("skipped_step")) for line in logged(tmp_path / "log")]
    assert told == [(60, 3, 51), (80, None, None)]
