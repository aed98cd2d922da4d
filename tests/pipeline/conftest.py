"""One cluster with a job server, and one whole run of the tiny recipe on it, for all tests that look at what was made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.tiny import REPOSITORY, TINY, is_served, wait_until

RAY = Path(sys.executable).parent / "ray"
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_TRACKING_URI": ""}


@pytest.fixture(scope="session")
def head(no_cluster, free_port):
    """A cluster started with `ray start --head`; yields its address and that of its jobs' server."""
    port, dashboard = free_port(), free_port()
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         "--num-cpus=2", "--object-store-memory=300000000", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir=/tmp/mar-{os.getpid()}"],
        env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    jobs = f"http://127.0.0.1:{dashboard}"

    try:
        wait_until(lambda: is_served(f"{jobs}/api/version"), 90, "the cluster's start")
        yield f"127.0.0.1:{port}", jobs
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, ending)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue


@pytest.fixture(scope="session")
def mar_on_head(head, mar):
    """Run the command line in a process of its own, on the cluster of `head`; returns the finished process."""

    def run(*words: str) -> subprocess.CompletedProcess:
        return mar(*words, RAY_ADDRESS=head[0], **ENVIRONMENT)

    return run


@pytest.fixture(scope="session")
def made(head, tmp_path_factory):
    """The output root of the tiny recipe, run by `ray job submit`, and what the job printed."""
    out = tmp_path_factory.mktemp("out")

    def submit(*words):
        command = [
            RAY, "job", "submit", f"--address={head[1]}", "--working-dir", ".", "--", sys.executable, "-m", "pipeline",
        ]  # fmt: skip
        for _ in range(30):  # the head answers before its job agent does
            done = subprocess.run(
                [*command, *words], cwd=REPOSITORY, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
                timeout=500,
            )  # fmt: skip
            if "No available agent" not in done.stdout + done.stderr:
                return done
            time.sleep(2)
        return done

    submitted = submit("run", "emoji-32", *TINY, "--compute.out", str(out))
    failed = submit("run", "x")
    assert submitted.returncode == 0, submitted.stdout[-4000:] + submitted.stderr[-2000:]
    assert failed.returncode == 1
    assert "unknown recipe 'x'" in failed.stdout + failed.stderr
    return out, submitted.stdout
