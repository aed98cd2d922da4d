"""Runs in MLflow: made, found again by their identity, and filled."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient, entities
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import HTTPError
from upath import UPath

from infra.cluster import check_tracking
from infra.errors import InputError
from infra.fingerprint import fingerprint, flatten
from infra.result import Dataset

FINGERPRINT, PARENT = "mar.fingerprint", "mlflow.parentRunId"
_BATCH, _LINES = 500, 40  # MLflow takes 1,000 points at once
_PARAM_CHARS = 500
_TIMEOUT, _UPLOAD_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", 24 * 3600
_HISTORY = "train/"
_SQLITE = "sqlite:///"
_SHARED_VIEW = "mlflow.sharedViewState."


for _name in ("mlflow", "alembic"):  # their notices of database set-up are not for the person at the console
    logging.getLogger(_name).setLevel(logging.WARNING)


@contextmanager
def unhurried() -> Iterator[None]:
    """Let MLflow's requests take as long as they need: of a model, gigabytes have to arrive first."""
    before = os.environ.get(_TIMEOUT)
    os.environ[_TIMEOUT] = str(_UPLOAD_SECONDS)
    try:
        yield
    finally:
        os.environ.pop(_TIMEOUT)
        os.environ.update({} if before is None else {_TIMEOUT: before})


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raise InputError, of one line, for what the store at `uri` refuses, and when it is away for minutes."""
    try:
        yield
    except (MlflowException, HTTPError) as error:
        raise _refusal(uri, error) from None


def _refusal(uri: str, error: MlflowException | HTTPError) -> InputError:
    remedy = ""
    if _may_not(error):
        remedy = "; the server knows who asks by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return InputError(f"--compute.tracking-uri {uri}: {str(error).splitlines()[0][:300]}{remedy}")


def _may_not(error: MlflowException | HTTPError) -> bool:
    """Tell whether the store refused who asked, not what was asked."""
    code = error.response.status_code if isinstance(error, HTTPError) else error.get_http_status_code()
    return code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time into a block that opens a local store: MLflow makes a new one's tables unguarded."""
    if not uri.startswith(_SQLITE):
        yield
        return
    beside = Path(f"{uri.removeprefix(_SQLITE)}.lock")
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that nobody may write to has its store already
            beside.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(beside.open("w")), fcntl.LOCK_EX)
        yield


class Tracker:
    """One experiment of one MLflow store."""

    def __init__(self, uri: str, root: UPath, experiment: str = "mar-pipeline") -> None:
        check_tracking(uri)
        self.uri, self._last_steps = uri, dict[str, int]()
        with answering(uri), _alone(uri):
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name(experiment)
            location = f"{root}/mlartifacts" if uri.startswith("sqlite") else None
            self.experiment = (
                found.experiment_id if found else self.client.create_experiment(experiment, artifact_location=location)
            )

    def find(self, fingerprint: str, parent: str | None = None) -> Any | None:  # noqa: ANN401
        """Return the newest run with this fingerprint below this parent, or None."""
        condition = f"tags.`{FINGERPRINT}` = '{fingerprint}'" + (f" and tags.`{PARENT}` = '{parent}'" if parent else "")
        runs = self.client.search_runs(
            [self.experiment], condition, order_by=["attributes.start_time DESC"], max_results=20
        )
        return next((run for run in runs if parent or PARENT not in run.data.tags), None)

    def children(self, run_id: str, metric: str = "") -> list[Any]:
        """Return the runs below this one, those with the smallest `metric` first where one is named."""
        order = f"metrics.`{metric}` ASC" if metric else "attributes.start_time ASC"
        return list(self.client.search_runs([self.experiment], f"tags.`{PARENT}` = '{run_id}'", order_by=[order]))

    def newest(self) -> str | None:
        """Return the newest run that is below no other, or None."""
        runs = self.client.search_runs([self.experiment], order_by=["attributes.start_time DESC"])
        return next((run.info.run_id for run in runs if PARENT not in run.data.tags), None)

    def view(self, state: Mapping[str, Any]) -> str:
        """Keep what a table of runs shows with the experiment, as the UI does to share it; returns the view's key."""
        key = fingerprint(state)
        self.client.set_experiment_tag(self.experiment, f"{_SHARED_VIEW}{key}", json.dumps(state))
        return key

    def note(self, run_id: str, text: str) -> None:
        """Set the Markdown that the UI shows above all else on the run's page."""
        self.tags(run_id, {"mlflow.note.content": text})

    def open(
        self, name: str, fingerprint: str, parent: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Return the id of the run with this fingerprint, made or resumed, and running."""
        run = self.find(fingerprint, parent)
        if run is None:
            all_tags = {FINGERPRINT: fingerprint, **({PARENT: parent} if parent else {}), **(tags or {})}
            return self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id
        self.client.update_run(run.info.run_id, status="RUNNING")
        return run.info.run_id

    def is_finished(self, fingerprint: str, parent: str) -> bool:
        """Tell whether this step was recorded whole under this parent."""
        run = self.find(fingerprint, parent)
        return run is not None and run.info.status == "FINISHED"

    def finish(self, run_id: str, *, failed: bool = False) -> None:
        """End a run."""
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def params(self, run_id: str, tree: Mapping[str, Any]) -> None:
        """Log the leaves of a config; values already there stay."""
        known = self.client.get_run(run_id).data.params
        leaves = [
            Param(key, str(value)[:_PARAM_CHARS]) for key, value in flatten(dict(tree)).items() if key not in known
        ]
        for start in range(0, len(leaves), 100):
            self.client.log_batch(run_id, params=leaves[start : start + 100])

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log finite numbers; others would come back changed."""
        now = int(time.time() * 1000)
        points = [
            Metric(k, float(v), now, step) for k, v in values.items() if isinstance(v, int | float) and np.isfinite(v)
        ]
        self.client.log_batch(run_id, metrics=points)

    def curve(self, run_id: str, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Log the finite points (step, value) of a metric, each step once: a process killed here is run again."""
        now = int(time.time() * 1000)
        known = {point.step for point in self.client.get_metric_history(run_id, name)}
        found = [
            Metric(name, float(value), now, step) for step, value in points if np.isfinite(value) and step not in known
        ]
        for start in range(0, len(found), _BATCH):
            self.client.log_batch(run_id, metrics=found[start : start + _BATCH])

    def history(self, run_id: str, lines: Sequence[Mapping[str, float]]) -> None:
        """Log many steps' metrics, each step once; each line has 'step' and 'time' (seconds), in order."""
        if run_id not in self._last_steps:
            self._last_steps[run_id] = self._last_step(run_id)
        lines = [line for line in lines if line["step"] > self._last_steps[run_id]]
        for start in range(0, len(lines), _LINES):  # where a process is killed, a step is whole or missing
            points = [
                Metric(f"{_HISTORY}{key}", float(value), int(line["time"] * 1000), int(line["step"]))
                for line in lines[start : start + _LINES]
                for key, value in line.items()
                if key not in ("step", "time") and np.isfinite(value)
            ]
            self.client.log_batch(run_id, metrics=points)
        if lines:
            self._last_steps[run_id] = max(int(line["step"]) for line in lines)  # a killed worker logs steps again

    def _last_step(self, run_id: str) -> int:
        """Return the last step whose metrics the run has, or -1."""
        names = [name for name in self.client.get_run(run_id).data.metrics if name.startswith(_HISTORY)]
        if not names:
            return -1
        return max(point.step for name in names for point in self.client.get_metric_history(run_id, name))

    def json(self, run_id: str, name: str, tree: Mapping[str, Any]) -> None:
        """Keep a tree of plain values with the run, as a file."""
        self.client.log_dict(run_id, dict(tree), name)

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def image(self, run_id: str, path: Path | UPath, key: str, *, once: bool = False) -> None:
        """Log a picture under a key that is the same in every run, so that the UI lines them up.

        With `once`, not where the run has one of that key.
        """
        named = f"images/{key.replace('/', '~')}+"
        if once and any(file.path.startswith(named) for file in self.client.list_artifacts(run_id, "images")):
            return
        self.client.log_image(run_id, mlflow.Image(str(path)), key=key, step=0, synchronous=True)

    def file(self, run_id: str, path: Path | UPath) -> None:
        """Keep a file with the run."""
        self.client.log_artifact(run_id, str(path))

    def dataset(self, run_id: str, used: Dataset) -> None:
        """Log a dataset as an input of a run."""
        entity = entities.Dataset(
            name=used.name, digest=used.digest[:36], source_type="local", source=used.source, profile=used.profile
        )
        tag = InputTag("mlflow.data.context", used.context)
        self.client.log_inputs(run_id, [DatasetInput(entity, [tag])])


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: str
    recipe: Mapping[str, Any]
    """Tree of the recipe that made it; empty when it was registered by other means."""


def registered_version(name: str, uri: str) -> Version:
    """Return which version models:/NAME@ALIAS or models:/NAME/NUMBER is. Raises InputError when `uri` has none."""
    client, (model, at, which) = MlflowClient(uri), name.removeprefix("models:/").replace("/", "@").partition("@")
    if not at:
        raise InputError(f"{name}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        found = (client.get_model_version if which.isdigit() else client.get_model_version_by_alias)(model, which)
    except MlflowException as error:
        raise _no_such(name, uri, error) from None
    mlflow.set_tracking_uri(uri)
    try:
        recipe = mlflow.artifacts.load_dict(f"runs:/{found.run_id}/recipe.json")
    except (MlflowException, OSError):
        recipe = {}
    return Version(model, str(found.version), recipe)


def download_model(name: str, uri: str, to: Path | None = None) -> Path:
    """Return the local folder of a registered model, models:/NAME@ALIAS or models:/NAME/VERSION, copied below `to`.

    Raises InputError when the store at `uri` has none of this name.
    """
    mlflow.set_tracking_uri(uri)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=name, dst_path=to and str(to)))
    except MlflowException as error:
        raise _no_such(name, uri, error) from None


def _no_such(name: str, uri: str, error: MlflowException) -> InputError:
    if _may_not(error):
        return _refusal(uri, error)
    return InputError(f"{name}: no such registered model in {uri} ({error.message.splitlines()[0][:200]})")
