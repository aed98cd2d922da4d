"""Addresses of MLflow's pages for a run: where there is something to compare."""

import json
import urllib.parse
from typing import TYPE_CHECKING

from evaluate.metrics.frechet import NAME

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking import Tracker
    from pipeline.results import RegistrationResult

Pages = list[tuple[str, str]]
PORT = 5000
"""Of the page that `mar ui` serves."""
_MOST_TRIALS = 20  # an address holds them all


def links(tracker: "Tracker", run: str, registered: "RegistrationResult | None" = None, port: int = PORT) -> Pages:
    """Return (what, URL) of the recipe's run, its trials side by side, its registered version, and all runs' charts.

    Without `registered` the version is the newest that was logged by the run.
    """
    server = tracker.uri.rstrip("/") if tracker.uri.startswith("http") else f"http://127.0.0.1:{port}"
    experiment = f"{server}/#/experiments/{tracker.experiment}"
    found = [("run", f"{experiment}/runs/{run}")]
    sweeps = [child for child in tracker.children(run) if child.info.run_name == "sweep"]
    trials = [trial.info.run_id for sweep in sweeps[:1] for trial in tracker.children(sweep.info.run_id, NAME)]
    if len(trials) > 1:
        runs, experiments = (_listed(of) for of in (trials[:_MOST_TRIALS], [tracker.experiment]))
        found.append(("trials", f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"))
    versions = [registered] if registered else tracker.client.search_model_versions(f"run_id = '{run}'")
    found += [("version", f"{server}/#/models/{of.name}/versions/{of.version}") for of in versions[:1]]
    return [*found, ("all runs", f"{experiment}/runs?compareRunsMode=CHART")]


def _listed(ids: list[str]) -> str:
    return urllib.parse.quote(json.dumps(ids, separators=(",", ":")))
