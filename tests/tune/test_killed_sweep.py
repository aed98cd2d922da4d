"""A sweep of trainings killed at five random moments ends with one record and one run for every planned trial."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from infra.follow import logged
from tests.pipeline.tiny import REPOSITORY, TINY, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
KILLS, WIDTHS, STEPS = 5, ("16", "24", "32", "48"), 240
MODEL = TINY[: TINY.index("--tune.temperature")]
FLAGS = [
    *MODEL, "--train.train-steps", str(STEPS), "--train.checkpoint-every", "20", "--compute.train.cpus", "1",
    "--tune.width", *WIDTHS, "--tune.images", "24",
]  # fmt: skip


def test_sweep_killed_at_random_moments_ends_with_one_record_a_planned_trial(tmp_path):
    moments, words = random.Random(15), ["tune", "emoji-32", "--sweep", "head", *FLAGS, "--compute.out", str(tmp_path)]
    folder = tmp_path / "artifacts" / "checkpoint" / "emoji-32"

    def driver():
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], cwd=REPOSITORY, start_new_session=True,
            stdout=(tmp_path / "log.txt").open("a"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def steps():
        return sum(len(logged(log)) for log in folder.glob("*/metrics.jsonl"))

    def killed():
        """Kill a driver some seconds after it trains; returns whether it was not done before."""
        running, before = driver(), steps()
        wait_until(lambda: steps() > before or running.poll() is not None, 300, "a step of a training")
        time.sleep(moments.uniform(0, 20))
        was_done = running.poll() is not None
        if not was_done:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return not was_done

    kills = [killed() for _ in range(KILLS)]
    assert any(kills)
    assert driver().wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]

    (record,) = (tmp_path / "artifacts" / "sweep").rglob("artifact.json")
    result = json.loads(record.read_text())["result"]
    ended = [*result["trials"], *result["stopped"], *result["failed"]]
    assert sorted(json.loads(of["fields"]["train.model.head.width"]) for of in ended) == sorted(map(int, WIDTHS))
    assert not result["failed"]
    assert all(of["step"] < STEPS and of["reason"] for of in result["stopped"])
    for of in ended:
        curve = [step for step, _ in of["curve"]]
        assert curve == list(range(20, curve[-1] + 1, 20))  # no checkpoint lost, none twice
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("mar-pipeline").experiment_id
    runs = client.search_runs([experiment], "tags.`mar.trial` = 'yes'")
    assert sorted(run.info.run_name for run in runs) == sorted(of["label"] for of in ended)
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
