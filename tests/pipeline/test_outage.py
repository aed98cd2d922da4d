"""A real MLflow server that goes away for a minute: training goes on, and each point is recorded once."""

import os
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from infra.follow import logged
from tests.pipeline.tiny import REPOSITORY, TINY, is_served, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
STEPS, AWAY_SECONDS = 4000, 60
FLAGS = [*TINY, "--train.train-steps", str(STEPS), "--train.checkpoint-every", "200", "--train.log-every", "5"]


def served(folder, port, *words, **environment):
    """A server of MLflow on this port, as its own process group, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept"), *words],
        env={**os.environ, **environment}, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: is_served(f"http://127.0.0.1:{port}/health"), 120, "the server's start")
    return process


def log_of(folder):
    return logged(next(folder.glob("artifacts/checkpoint/*/*/metrics.jsonl"), folder / "none"))


def test_server_gone_for_a_minute_costs_neither_a_step_nor_a_point(tmp_path, mar, free_port):
    port, out, undisturbed = free_port(), tmp_path / "out", tmp_path / "undisturbed"
    uri = f"http://127.0.0.1:{port}"
    server = served(tmp_path, port)
    words = ["train", "emoji-32", *FLAGS, "--compute.tracking-uri", uri, "--compute.out"]
    with (tmp_path / "log.txt").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words, str(out)], cwd=REPOSITORY, start_new_session=True, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: len(log_of(out)) > 20 or driver.poll() is not None, 400, "training")
        os.killpg(server.pid, signal.SIGKILL)
        before = len(log_of(out))
        time.sleep(AWAY_SECONDS)
        assert len(log_of(out)) > before
        server = served(tmp_path, port)
        assert driver.wait(timeout=600) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        client = mlflow.MlflowClient(uri)
        (experiment,) = client.search_experiments(filter_string="name = 'mar-pipeline'")
        (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'checkpoint'")
        assert run.info.status == "FINISHED"
        points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, "train/loss"))
    finally:
        for process in (driver, server):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert points == [(line["step"], line["loss"]) for line in log_of(out)]
    assert [step for step, _ in points] == list(range(5, STEPS + 1, 5))
    for step in ("pictures", "tokenizer", "latents"):
        shutil.copytree(out / "artifacts" / step, undisturbed / "artifacts" / step)
    straight = mar("train", "emoji-32", *FLAGS, "--compute.out", str(undisturbed))
    assert straight.returncode == 0, straight.stderr
    assert [line["loss"] for line in log_of(undisturbed)] == [line["loss"] for line in log_of(out)]
