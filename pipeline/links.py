"""Addresses of MLflow's pages for a run: where there is something to compare.

What a table of runs shows, MLflow keeps in the browser; a link can name a view that is kept with the experiment. The
views made here have columns of metrics, and the settings that trials differ in.
"""

import json
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluate.metrics.frechet import NAME
from pipeline.record import TRIAL

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking import Tracker
    from pipeline.results import RegistrationResult

Pages = list[tuple[str, str]]
PORT = 5000
"""Of the page that `mar ui` serves."""
_MOST_TRIALS = 20  # an address holds them all
_RUN_COLUMNS = (
    "params.`recipe`",
    f"metrics.`{NAME}`",
    f"metrics.`{NAME}_error`",
    "params.`train_steps`",
    "params.`lr`",
)
_ALWAYS = ("temperature", "cfg_scale")
_TRIAL_METRICS = (
    NAME, f"{NAME}_error", "seconds_per_image", "parameters", "head_parameters", "train/heldout_mse",
    "train/heldout_loss",
)  # fmt: skip


def links(tracker: "Tracker", run: str, registered: "RegistrationResult | None" = None, port: int = PORT) -> Pages:
    """Return (what, URL) of the recipe's run, its trials side by side, its registered version, and all runs.

    Without `registered` the version is the newest that was logged by the run.
    """
    server = _server(tracker, port)
    experiment = f"{server}/#/experiments/{tracker.experiment}"
    found = [("run", run_page(tracker, run, port))]
    trials = [child for child in tracker.children(run, NAME) if TRIAL in child.data.tags]
    if len(trials) > 1:
        view = tracker.view(_trials_view(run, trials))
        ids, experiments = (
            _listed(of) for of in ([t.info.run_id for t in trials][:_MOST_TRIALS], [tracker.experiment])
        )
        found.append(("trials", f"{experiment}/runs?viewStateShareKey={view}"))
        found.append(("pictures", f"{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={view}"))
        found.append(("compared", f"{server}/#/compare-runs?runs={ids}&experiments={experiments}"))
    versions = [registered] if registered else tracker.client.search_model_versions(f"run_id = '{run}'")
    found += [("version", f"{server}/#/models/{of.name}/versions/{of.version}") for of in versions[:1]]
    view = tracker.view({"selectedColumns": list(_RUN_COLUMNS)})
    return [*found, ("all runs", f"{experiment}/runs?viewStateShareKey={view}")]


def run_page(tracker: "Tracker", run: str, port: int = PORT) -> str:
    """Return the URL of one run."""
    return f"{_server(tracker, port)}/#/experiments/{tracker.experiment}/runs/{run}"


def _server(tracker: "Tracker", port: int) -> str:
    return tracker.uri.rstrip("/") if tracker.uri.startswith("http") else f"http://127.0.0.1:{port}"


def _trials_view(run: str, trials: Sequence[Any]) -> dict[str, Any]:
    """Return a flat table of a run's trials, the smallest distance first, with what they differ in."""
    names = dict.fromkeys(name for trial in trials for name in trial.data.params)
    differ = [name for name in names if name in _ALWAYS or len({trial.data.params.get(name) for trial in trials}) > 1]
    metrics = [name for name in _TRIAL_METRICS if any(name in trial.data.metrics for trial in trials)]
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run}' and tags.`{TRIAL}` = 'yes'",
        "orderByKey": f"metrics.`{NAME}`", "orderByAsc": True,
        "selectedColumns": [*(f"metrics.`{name}`" for name in metrics), *(f"params.`{name}`" for name in differ)],
    }  # fmt: skip


def _listed(ids: list[str]) -> str:
    return urllib.parse.quote(json.dumps(ids, separators=(",", ":")))
