"""The model registry: log the model, load it back and sample it, register it, and give the best an alias."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from evaluate.conditions import Conditions, comparable
from evaluate.metrics.frechet import NAME
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import from_json
from infra.storage import write_json
from infra.tracking import Tracker
from pipeline.plan import Plan, local_path
from train.checkpoint import read_card

CHAMPION, CHALLENGER = "champion", "challenger"
_ROOMS = ("infra", "tokenize_jobs", "train", "evaluate", "pipeline")


def register(tracker: Tracker, run_id: str, plan: Plan) -> dict[str, Any]:
    """Register the plan's model with its best sampling settings; returns name, version and alias.

    The version becomes champion when it is the first, or better than the champion under the same conditions
    (metric and reference); otherwise challenger.
    """
    evaluation, sweep = (plan.steps[name].find() for name in ("evaluation", "sweep"))
    assert evaluation is not None
    assert sweep is not None
    mlflow.set_tracking_uri(tracker.uri)
    name, fingerprint = f"mar-{plan.recipe.name}", evaluation.fingerprint
    measured = evaluation.measured
    tags = {
        "mar.evaluation": fingerprint, "metric": measured["metric"], NAME: str(measured["numbers"][NAME]),
        "conditions": json.dumps(measured["conditions"], sort_keys=True),
        "best_sampling": json.dumps(sweep.measured["best"]),
    }  # fmt: skip
    known = _version_with(tracker, name, fingerprint)
    if known is None:
        model_uri = _log_model(run_id, plan, sweep.measured["best"])
        _load_back(model_uri, plan)
        known = mlflow.register_model(model_uri, name, tags=tags).version
        tracker.client.update_registered_model(name, description=_description(evaluation.measured))
    alias = _choose_alias(tracker, name, tags)
    tracker.client.set_registered_model_alias(name, alias, known)
    return {"name": name, "version": int(known), "alias": alias}


def _log_model(run_id: str, plan: Plan, best: dict[str, Any]) -> str:
    """Log the model as code, safetensors and JSON (nothing pickled); returns its URI."""
    repository = Path(__file__).parents[1]
    model, size = local_path(plan.path("checkpoint")), plan.recipe.tokenize.image_size
    with tempfile.TemporaryDirectory() as folder:
        package = _gather(plan, model, best, Path(folder))
        params = ParamSchema(
            [
                ParamSpec("cfg_scale", DataType.double, float(best["cfg_scale"])),
                ParamSpec("temperature", DataType.double, float(best["temperature"])),
                ParamSpec("ar_steps", DataType.long, int(best["ar_steps"])),
                ParamSpec("seed", DataType.long, 0),
            ]
        )
        signature = ModelSignature(
            inputs=Schema([ColSpec(DataType.long, "class_id")]),
            outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]),
            params=params,
        )
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="sampler",
                python_model=str(repository / "pipeline" / "served_model.py"),
                artifacts={"package": str(package)},
                code_paths=[str(repository / room) for room in _ROOMS],
                signature=signature,
                input_example=pd.DataFrame({"class_id": [0, 1]}),
                pip_requirements=[
                    "torch",
                    "safetensors",
                    "numpy",
                    "universal-pathlib",
                    "cattrs",
                    "pandas",
                    "diffusers",
                ],
            )
    return logged.model_uri


def _gather(plan: Plan, model: Path, best: dict[str, Any], folder: Path) -> Path:
    """Put what sampling needs into one directory: the averaged weights, the tokenizer, the best settings."""
    import shutil

    package = folder / "package"
    package.mkdir()
    for name in ("model.json", "ema.safetensors"):
        shutil.copy(model / name, package / name)
    tokenizer = plan.recipe.tokenizer
    if tokenizer.kind == "fit":
        source, target = local_path(plan.path("tokenizer")), package / "tokenizer"
        target.mkdir()
        for name in ("tokenizer.json", "tokenizer.safetensors"):
            shutil.copy(source / name, target / name)
    elif tokenizer.kind != "pixels":
        source = Path(tokenizer.path)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, package / f"tokenizer{source.suffix}")
    suffix = Path(getattr(tokenizer, "path", "") or "").suffix
    write_json(
        package / "sampling.json",
        {"sampling": best, "tokenizer": {"kind": tokenizer.kind, "file": f"tokenizer{suffix}"}},
    )
    return package


def _load_back(model_uri: str, plan: Plan) -> None:
    """Load the logged model as a user would and draw an image of each of the first classes.

    Raises RuntimeError when the images are not what the signature promises.
    """
    before = set(sys.path)
    sampler = mlflow.pyfunc.load_model(model_uri)
    sys.path[:] = [entry for entry in sys.path if entry in before]  # the copied code stays with the loaded model
    classes = min(4, len(read_card(plan.path("checkpoint")).classes))
    images = sampler.predict(pd.DataFrame({"class_id": list(range(classes))}), params={"seed": 1})
    size = plan.recipe.tokenize.image_size
    if np.asarray(images).shape != (classes, size, size, 3) or np.asarray(images).std() == 0:
        raise RuntimeError(f"the model loaded back from {model_uri} does not sample: {np.asarray(images).shape}")
    stage("registration", f"loaded back {model_uri} and drew {classes} images")


def _version_with(tracker: Tracker, name: str, fingerprint: str) -> str | None:
    """Return the version registered for this evaluation, if any: registering twice would make two."""
    try:
        versions = tracker.client.search_model_versions(f"name = '{name}'")
    except MlflowException:
        return None
    return next((version.version for version in versions if version.tags.get("mar.evaluation") == fingerprint), None)


def _choose_alias(tracker: Tracker, name: str, tags: dict[str, str]) -> str:
    try:
        champion = tracker.client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return CHAMPION
    if champion.tags.get("mar.evaluation") == tags["mar.evaluation"]:
        return CHAMPION
    try:
        of = [from_json(found["conditions"], Conditions, "conditions") for found in (champion.tags, tags)]
        better = comparable(*of) and float(tags[NAME]) < float(champion.tags[NAME])
    except (KeyError, InputError):  # a version of other tags
        better = False
    return CHAMPION if better else CHALLENGER


def _description(measured: dict[str, Any]) -> str:
    return (
        f"{measured['metric']} {measured['numbers'][NAME]} (held-out real "
        f"{measured['floor'].get(NAME, 'not measured')}). Sample with predict(class_id, params=...)."
    )
