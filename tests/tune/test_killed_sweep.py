"""A sweep killed at five random moments ends with one record and one run for every planned trial, and loses none."""

import itertools
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
TEMPERATURES, SCALES = (0.8, 0.9, 1.0, 1.1, 1.2), (1.0, 2.0, 3.0)
LATEST = 12  # seconds
MODEL = TINY[: TINY.index("--tune.temperature")]
FLAGS = [
    *MODEL, "--train.train-steps", str(STEPS), "--train.checkpoint-every", "20", "--compute.train.cpus", "1",
    "--tune.width", *WIDTHS, "--tune.images", "24",
]  # fmt: skip
SAMPLING = [
    "--tune.temperature", *map(str, TEMPERATURES), "--tune.cfg-scale", *map(str, SCALES), "--tune.ar-steps", "8",
    "--tune.images", "64", "--compute.generate.cpus", "1",
]  # fmt: skip


def killed_five_times(words, folder, progress):
    """Kill the command some seconds after `progress` grows, five times, then let it end."""
    moments = random.Random(15)

    def driver():
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], cwd=REPOSITORY, start_new_session=True,
            stdout=(folder / "log.txt").open("a"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def killed():
        """Return whether it was not done before."""
        running, before = driver(), progress()
        try:
            wait_until(lambda: progress() > before or running.poll() is not None, 900, "progress")
            time.sleep(moments.uniform(0, LATEST))
            return running.poll() is None
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    kills = [killed() for _ in range(KILLS)]
    assert sum(kills) > 1, "too short a sweep to be killed"
    assert driver().wait() == 0, (folder / "log.txt").read_text()[-3000:]


def result_in(folder):
    (record,) = (folder / "artifacts" / "sweep").rglob("artifact.json")
    return json.loads(record.read_text())["result"]


def trial_runs(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("mar-pipeline").experiment_id
    runs = client.search_runs([experiment], "tags.`mar.trial` = 'yes'")
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    return runs


def test_trainings_killed_at_random_moments_end_with_one_record_each(tmp_path):
    words = ["tune", "emoji-32", "--sweep", "head", *FLAGS, "--compute.out", str(tmp_path)]
    logs = tmp_path / "artifacts" / "checkpoint" / "emoji-32"
    killed_five_times(words, tmp_path, lambda: sum(len(logged(log)) for log in logs.glob("*/metrics.jsonl")))

    result = result_in(tmp_path)
    ended = [*result["trials"], *result["stopped"], *result["failed"]]
    assert sorted(json.loads(of["fields"]["train.model.head.width"]) for of in ended) == sorted(map(int, WIDTHS))
    assert not result["failed"]
    assert all(of["step"] < STEPS and of["reason"] for of in result["stopped"])
    for of in ended:
        curve = [step for step, _ in of["curve"]]
        assert curve == list(range(20, curve[-1] + 1, 20))  # no checkpoint lost, none twice
    assert sorted(run.info.run_name for run in trial_runs(tmp_path)) == sorted(of["label"] for of in ended)


def test_samplings_killed_at_random_moments_end_with_one_record_each_and_none_is_measured_twice(tmp_path):
    words = ["tune", "emoji-32", *MODEL, *SAMPLING, "--compute.out", str(tmp_path)]
    trials, made = tmp_path / "artifacts" / "sweep" / "emoji-32" / "trials", {}

    def progress():
        for file in trials.glob("*/*.json"):
            made.setdefault(file, file.stat().st_mtime_ns)
        return len(made)

    killed_five_times(words, tmp_path, progress)
    progress()
    assert {file: file.stat().st_mtime_ns for file in made} == made  # what was finished is kept as it was
    found = [(of["sampling"]["temperature"], of["sampling"]["cfg_scale"]) for of in result_in(tmp_path)["trials"]]
    assert sorted(found) == sorted(itertools.product(TEMPERATURES, SCALES))
    assert result_in(tmp_path)["unfinished"] == []
    assert len(made) == len(found) == len(trial_runs(tmp_path))
