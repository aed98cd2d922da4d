"""The pages that are printed are those of the run, its trials and its version."""

import json
import urllib.parse

import pytest
from upath import UPath

from infra.tracking import Tracker
from pipeline.links import links
from pipeline.record import TRIAL
from pipeline.results import RegistrationResult


@pytest.mark.e2e
def test_links_name_the_run_its_trials_best_first_and_the_version(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", UPath(tmp_path))
    run = tracker.open("small", "r")
    assert [name for name, _ in links(tracker, run)] == ["run", "all runs"]
    tracker.metrics(tracker.open("sweep", "s", run), {"fd": 1.0})  # a step is no trial
    trials = {fd: tracker.open(f"t{fd}", f"t{fd}", run, {TRIAL: "yes"}) for fd in (30.0, 10.0, 20.0)}
    for fd, trial in trials.items():
        tracker.metrics(trial, {"fd": fd, "seconds_per_image": 1 / fd})
        tracker.params(trial, {"temperature": 1.0, "cfg_scale": fd, "order": "random"})
    found = dict(links(tracker, run, RegistrationResult(name="small", version=3, alias="champion"), port=5005))
    server = "http://127.0.0.1:5005/#"
    assert found["run"] == f"{server}/experiments/{tracker.experiment}/runs/{run}"
    assert found["version"] == f"{server}/models/small/versions/3"
    query = urllib.parse.parse_qs(found["compared"].partition("?")[2])
    assert json.loads(query["runs"][0]) == [trials[10.0], trials[20.0], trials[30.0]]
    assert json.loads(query["experiments"][0]) == [tracker.experiment]
    assert tracker.newest() == run
    key = urllib.parse.parse_qs(found["trials"].partition("?")[2])["viewStateShareKey"][0]
    view = json.loads(tracker.client.get_experiment(tracker.experiment).tags[f"mlflow.sharedViewState.{key}"])
    listed = tracker.client.search_runs(
        [tracker.experiment], view["searchFilter"], order_by=[f"{view['orderByKey']} ASC"]
    )
    assert [of.info.run_id for of in listed] == [trials[10.0], trials[20.0], trials[30.0]]
    assert view["selectedColumns"] == [
        "metrics.`fd`", "metrics.`seconds_per_image`", "params.`temperature`", "params.`cfg_scale`"
    ]  # fmt: skip
