"""Ctrl-C at any stage: what is finished stays cached, nothing is left running, and the next run goes on."""

import signal
import subprocess
import sys

import pytest

from tests.pipeline.tiny import REPOSITORY, TINY, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = ("pictures", "tokenizer", "latents", "reference", "checkpoint", "sweep", "evaluation")


def interrupted_at(step, out):
    """Run the tiny recipe, press Ctrl-C when it makes `step`, and wait until every process is gone; returns the log."""
    log = out.parent / f"{step}.log"
    with log.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", "emoji-32", *TINY, "--compute.out", str(out)],
            cwd=REPOSITORY, start_new_session=True, stdout=output, stderr=output,
        )  # fmt: skip
    wait_until(lambda: f"{step} | making" in log.read_text() or driver.poll() is not None, 180, f"step {step}")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 130, log.read_text()
    assert "interrupted: finished steps are cached" in log.read_text()
    assert "Traceback" not in log.read_text()

    def group_is_gone():
        return subprocess.run(["pgrep", "-g", str(driver.pid)], stdout=subprocess.DEVNULL, check=False).returncode == 1

    wait_until(group_is_gone, 20, "the end of every process")
    return log.read_text()


def test_interrupt_leaves_finished_steps_cached_and_no_process(tmp_path, mar_here):
    interrupted_at("tokenizer", tmp_path / "out")
    told = mar_here("status", "emoji-32", *TINY, "--compute.out", str(tmp_path / "out")).stdout
    assert [line.split()[1] for line in told.splitlines()[2:4]] == ["cached", "missing"]


@pytest.mark.chaos
def test_interrupt_in_each_step_in_turn_and_a_run_that_goes_on(tmp_path, mar):
    for index, step in enumerate(STEPS):
        log = interrupted_at(step, tmp_path / "out")
        before = max(index - 1, 0)  # the step before was made by this very run
        assert [f"{done} | cached" in log for done in STEPS] == [True] * before + [False] * (len(STEPS) - before)
    done = mar("run", "emoji-32", *TINY, "--compute.out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cached (") == len(STEPS) - 1
    assert "registration | done" in done.stdout
