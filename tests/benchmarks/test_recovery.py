"""What the row of a kill tells, with a process that does nothing and a log that is written here."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil

from benchmarks import recovery
from infra.follow import append

LATER = 5.0
"""Seconds from the kill to the first step of the next worker, as its line has them."""


def test_row_tells_seconds_from_the_kill_to_the_first_step_after_it_and_where_that_is(tmp_path, monkeypatch):
    log, began = tmp_path / "log", time.time()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    for step in range(1, 151):
        append(log, {"step": step, "time": began})

    def go_on():
        process.wait()
        died = time.time()
        for step in range(101, 104):
            append(log, {"step": step, "time": died + LATER + step - 101})

    following = threading.Thread(target=go_on)
    following.start()
    monkeypatch.setattr(recovery, "_TRAINED_BEFORE", 0)
    monkeypatch.setattr(recovery, "worker", lambda: psutil.Process(process.pid))
    row = recovery.stood_still(log, recovery.worker, SimpleNamespace(is_alive=lambda: True))
    following.join()
    seconds, _, told = row.partition(" s | ")
    assert LATER - 0.1 < float(seconds) < LATER + 60
    assert told == "step 101, 150 was reached before |"
