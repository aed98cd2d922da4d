"""One maker of a step: the second is told who holds it, and the hold of a dead process ends by itself."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.errors import InputError
from infra.hold import HOLD, holder, holding
from infra.storage import location, write_json


def written(folder, **changes):
    import socket

    now = time.time()
    here = {"host": socket.gethostname(), "namespace": str(Path("/proc/self/ns/pid").readlink())}
    hold = {**here, "pid": os.getpid(), "since": now, "renewed": now, **changes}
    write_json(location(folder) / HOLD, hold)
    return hold


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_second_maker_is_told_who_holds_the_step_and_a_finished_one_leaves_nothing(tmp_path):
    folder = location(tmp_path)
    with holding(folder):
        assert holder(folder).pid == os.getpid()
        with pytest.raises(InputError, match=f"is being made by process {os.getpid()} on"), holding(folder):
            pass
        assert holder(folder) is not None
    assert list(tmp_path.iterdir()) == []


def test_several_may_share_what_several_can_make(tmp_path):
    with holding(location(tmp_path), shared=True), holding(location(tmp_path), shared=True):
        assert holder(location(tmp_path)) is not None


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"pid": None}, False),
        ({"host": "elsewhere", "pid": 1}, True),
        ({"namespace": "another container's", "pid": 4_000_000}, True),
        ({"host": "elsewhere", "pid": 1, "renewed": 0.0}, False),
    ],
    ids=[
        "here and running",
        "here and dead",
        "elsewhere and renewed",
        "another container here",
        "elsewhere and silent",
    ],
)
def test_hold_of_a_dead_process_ends_by_itself(tmp_path, changes, alive):
    if changes.get("pid", 0) is None:
        changes = {"pid": dead_pid()}
    written(tmp_path, **changes)
    assert (holder(location(tmp_path)) is not None) == alive
    if alive:
        with pytest.raises(InputError, match="is being made"), holding(location(tmp_path)):
            pass
    else:
        with holding(location(tmp_path)):
            assert holder(location(tmp_path)).pid == os.getpid()


def test_damaged_hold_is_nobodys(tmp_path):
    (tmp_path / HOLD).write_text(json.dumps(written(tmp_path))[:20])
    assert holder(location(tmp_path)) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dead_before", [False, True])
def test_of_many_that_begin_and_end_at_any_moment_one_holds(tmp_path, monkeypatch, request, dead_before, seed):
    if dead_before:
        written(tmp_path, pid=dead_pid())
    monkeypatch.setattr("infra.hold._BURIAL_SECONDS", 0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that a thread stands still between any two lines
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    inside, most, refused, lock = 0, 0, 0, threading.Lock()
    ready = threading.Barrier(8)

    def make(draw):
        nonlocal inside, most, refused
        ready.wait()
        for _ in range(15):
            try:
                with holding(location(tmp_path)):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(draw.uniform(0, 0.003))
                    with lock:
                        inside -= 1
            except InputError:
                with lock:
                    refused += 1

    threads = [threading.Thread(target=make, args=(random.Random(f"{seed} {i}"),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert refused >= 1


def test_process_that_stood_still_and_was_taken_for_dead_is_stopped_and_leaves_the_others_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("infra.hold._RENEWED_EVERY_SECONDS", 0.05)

    def make():
        with holding(location(tmp_path)):
            written(tmp_path, host="elsewhere", pid=1)
            time.sleep(20)

    with pytest.raises(InputError, match="stood still, and was taken for dead by process 1 on elsewhere"):
        make()
    assert holder(location(tmp_path)).host == "elsewhere"


def test_process_that_ends_before_it_learns_of_its_successor_leaves_the_others_hold(tmp_path):
    with holding(location(tmp_path)):
        written(tmp_path, host="elsewhere", pid=1)
    assert holder(location(tmp_path)).host == "elsewhere"


def test_filesystem_without_links_has_one_holder_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    with holding(location(tmp_path)):
        assert holder(location(tmp_path)).pid == os.getpid()
        with pytest.raises(InputError, match="is being made"), holding(location(tmp_path)):
            pass
    assert holder(location(tmp_path)) is None
