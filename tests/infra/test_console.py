"""What is printed, and what becomes of a command whose output nobody reads."""

import os
import subprocess
import sys

import pytest

from infra.console import Progress
from tests.conftest import REPOSITORY


def progress_lines(capsys, updates, total=6000):
    """Print progress at given (second, done) and return the lines."""
    time = [0.0]
    progress = Progress("checkpoint", total, "steps", clock=lambda: time[0])
    for time[0], done in updates:
        progress.update(done)
    return capsys.readouterr().out.splitlines()


def test_rate_of_a_resumed_run_is_that_of_its_own_steps(capsys):
    lines = progress_lines(capsys, [(1e6 + second, 1000 + 3 * second) for second in range(0, 100, 7)])
    assert lines[0] == "checkpoint | 1000/6000 steps"
    assert all(", 3.0 steps/s, " in line for line in lines[1:])
    assert lines[-1].endswith(f"{1000 + 3 * 98}/6000 steps, 3.0 steps/s, {(5000 - 3 * 98) / 3:.0f} s left")


def test_rate_is_that_of_the_last_minute(capsys):
    slow = [(second, second) for second in range(0, 600, 5)]
    fast = [(595 + second, 595 + 10 * second) for second in range(5, 70, 5)]
    lines = progress_lines(capsys, slow + fast)
    assert ", 1.0 steps/s, " in lines[len(slow) - 1]
    assert ", 10.0 steps/s, " in lines[-1]


def test_rate_of_steps_minutes_apart_is_told(capsys):
    lines = progress_lines(capsys, [(300 * step, step) for step in range(5)])
    assert [line.split(", ")[1] for line in lines[1:]] == ["0.0033 steps/s"] * 4


def test_steps_made_again_after_a_restart_begin_a_new_rate(capsys):
    updates = [
        *((second, 10 * second) for second in range(0, 51, 5)),
        *((80 + s, 400 + 2 * s) for s in range(0, 31, 5)),
    ]
    lines = progress_lines(capsys, updates)
    assert lines[11] == "checkpoint | 400/6000 steps"
    assert all(", 2.0 steps/s, " in line for line in lines[12:])


def test_lines_that_come_in_one_bundle_claim_no_rate(capsys):
    lines = progress_lines(capsys, [(100.0, 20), (100.00001, 40), (100.00002, 60)], total=60)
    assert lines == ["checkpoint | 20/60 steps", "checkpoint | 60/60 steps"]


@pytest.mark.parametrize("words", [["run", "emoji-32", "--help"], ["recipes"], ["--help"]])
def test_command_whose_reader_has_gone_ends_quietly(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=REPOSITORY, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
