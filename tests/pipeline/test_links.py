"""The pages that are printed are those of the run, its trials and its version."""

import json
import urllib.parse

import pytest
from upath import UPath

from infra.tracking import Tracker
from pipeline.links import links
from pipeline.results import RegistrationResult


@pytest.mark.e2e
def test_links_name_the_run_its_trials_best_first_and_the_version(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", UPath(tmp_path))
    run = tracker.open("small", "r")
    assert [name for name, _ in links(tracker, run)] == ["run", "all runs"]
    sweep = tracker.open("sweep", "s", run)
    trials = {fd: tracker.open(f"t{fd}", f"t{fd}", sweep) for fd in (30.0, 10.0, 20.0)}
    for fd, trial in trials.items():
        tracker.metrics(trial, {"fd": fd})
    found = dict(links(tracker, run, RegistrationResult(name="small", version=3, alias="champion"), port=5005))
    server = "http://127.0.0.1:5005/#"
    assert found["run"] == f"{server}/experiments/{tracker.experiment}/runs/{run}"
    assert found["version"] == f"{server}/models/small/versions/3"
    query = urllib.parse.parse_qs(found["trials"].partition("?")[2])
    assert json.loads(query["runs"][0]) == [trials[10.0], trials[20.0], trials[30.0]]
    assert json.loads(query["experiments"][0]) == [tracker.experiment]
    assert tracker.newest() == run
