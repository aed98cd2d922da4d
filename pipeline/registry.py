"""The model registry: log the model, load it back and sample it, register it, and give the best an alias."""

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from upath import UPath

from evaluate.metrics.frechet import NAME
from evaluate.results import EvaluationResult
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint, flatten
from infra.storage import write_json
from infra.tracking import Tracker, answering, unhurried
from pipeline.promotion import (
    CHALLENGER,
    CHAMPION,
    CHECKPOINT,
    ERROR,
    champion_of,
    crown,
    is_better,
    is_rolled_back,
)  # fmt: skip
from pipeline.results import RegistrationResult
from tokenize_jobs.config import TokenizerFile
from train.card import EMA_WEIGHTS, MODEL, WEIGHTS, read_card

DESCRIPTION = (
    "An autoregressive image generator. Rows of the input have class_id, and may have cfg_scale, temperature, "
    "ar_steps, diffusion_steps and seed, which are parameters too; image_format png answers PNG files in base64."
)
_VERSION_TAGS = (CHECKPOINT, "mar.sampling", "mar.evaluation")
_CHECKED_CLASSES, _CHECKED_STEPS = 2, 2  # the driver may have no GPU
_REPOSITORY = Path(__file__).parents[1]
_ROOMS = ("infra", "tokenize_jobs", "train", "evaluate", "pipeline")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to register: with the sampling settings that were measured, and what was measured with them."""

    name: str
    """Name of the registered model."""
    run_name: str
    run: str
    """Identity of the run that it belongs to."""
    model: Path
    """Directory of the checkpoint."""
    checkpoint: str
    """Its fingerprint."""
    tokenizer: TokenizerFile
    image_size: int
    evaluation: str
    """Fingerprint of the evaluation: of checkpoint, settings and what they were measured against."""
    measured: EvaluationResult
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Tags saying what the model was made from, among promotion's LINEAGE."""


def register(candidate: Candidate, uri: str, root: UPath) -> RegistrationResult:
    """Log the model, load it back, register it and give it an alias.

    It becomes champion when it is the first, or better than the champion beyond the error bar and under the same
    conditions; otherwise challenger. Raises RuntimeError when what was logged does not sample, InputError when the
    registry fails: the next run goes on from there.
    """
    with answering(uri):
        return _register(candidate, uri, root)


def _register(candidate: Candidate, uri: str, root: UPath) -> RegistrationResult:
    mlflow.set_tracking_uri(uri)
    tracker = Tracker(uri, root)
    measured, sampling = candidate.measured, canonical(candidate.measured.sampling)
    tags = {
        CHECKPOINT: candidate.checkpoint, "mar.evaluation": candidate.evaluation,
        "mar.sampling": fingerprint(sampling), "sampling": json.dumps(sampling), "metric": measured.metric,
        **candidate.lineage, **({ERROR: str(measured.errors[NAME])} if NAME in measured.errors else {}),
        NAME: str(measured.fd), "conditions": json.dumps(canonical(measured.conditions), sort_keys=True),
        "rank_deficient": measured.conditions.tags["rank_deficient"],
    }  # fmt: skip
    version = _version_with(tracker, candidate.name, tags)
    if version is None:
        run_id = tracker.open(candidate.run_name, candidate.run)
        with unhurried():
            model_uri = _log_model(run_id, candidate)
            _load_back(model_uri, candidate)
        version = mlflow.register_model(model_uri, candidate.name, tags=tags).version
    tracker.client.update_registered_model(candidate.name, description=DESCRIPTION)  # again where a run died before
    tracker.client.update_model_version(candidate.name, version, description=_description(measured))
    alias = _give_alias(tracker.client, candidate.name, version, tags)
    return RegistrationResult(name=candidate.name, version=int(version), alias=alias)


def _log_model(run_id: str, candidate: Candidate) -> str:
    """Log the model as code, safetensors and JSON (nothing pickled); returns its URI."""
    size, sampling = candidate.image_size, candidate.measured.sampling
    params = ParamSchema(
        [
            ParamSpec("cfg_scale", DataType.double, float(sampling.cfg_scale)),
            ParamSpec("temperature", DataType.double, float(sampling.temperature)),
            ParamSpec("ar_steps", DataType.long, int(sampling.ar_steps)),
            ParamSpec("diffusion_steps", DataType.long, 0),
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("image_format", DataType.string, "array"),
        ]
    )
    # no inputs: where a signature has some, MLflow drops other columns, and a misspelt setting would be lost in silence
    signature = ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]), params=params)
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="sampler",
            python_model=str(_REPOSITORY / "pipeline" / "served_model.py"),
            artifacts={"package": str(_gather(candidate, Path(folder) / "package"))},
            code_paths=[str(_packed_code(Path(folder)))],
            signature=signature,
            input_example=pd.DataFrame({"class_id": [0, 1]}),
            pip_requirements=["torch", "safetensors", "numpy", "universal-pathlib", "cattrs", "pandas", "diffusers"],
        )
    return logged.model_uri


def _packed_code(folder: Path) -> Path:
    """Put the code into one file, which `served_model` looks for: each file of a model is a request to the server."""
    packed = folder / "rooms.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as into:
        for file in (file for room in _ROOMS for file in sorted((_REPOSITORY / room).rglob("*.py"))):
            into.write(file, file.relative_to(_REPOSITORY))
    return packed


def _gather(candidate: Candidate, package: Path) -> Path:
    """Put what sampling needs into one directory: the weights that were measured, the tokenizer, the settings."""
    package.mkdir()
    shutil.copy(candidate.model / MODEL, package / MODEL)
    weights = WEIGHTS if candidate.measured.ema is False else EMA_WEIGHTS
    shutil.copy(candidate.model / weights, package / EMA_WEIGHTS)
    tokenizer, inside = candidate.tokenizer, ""
    if tokenizer.path:
        source = Path(tokenizer.path)
        inside = f"tokenizer{source.suffix if source.is_file() else ''}"
        (shutil.copytree if source.is_dir() else shutil.copy)(source, package / inside)
    sampling = canonical(candidate.measured.sampling)
    write_json(package / "sampling.json", {"sampling": sampling, "tokenizer": {"kind": tokenizer.kind, "file": inside}})
    return package


def _load_back(model_uri: str, candidate: Candidate) -> None:
    """Load the logged model as a user would and draw an image of each of the first classes, in few steps.

    Raises RuntimeError when the images are not what the signature promises.
    """
    before = set(sys.path)
    sampler = mlflow.pyfunc.load_model(model_uri)
    sys.path[:] = [entry for entry in sys.path if entry in before]  # the copied code stays with the loaded model
    model = read_card(candidate.model).model
    classes = min(_CHECKED_CLASSES, model.num_classes)
    few = {
        "seed": 1,
        "diffusion_steps": _CHECKED_STEPS,
        "ar_steps": model.trunk.least_steps(model.num_tokens, model.tokens.together),
    }
    images = np.asarray(sampler.predict(pd.DataFrame({"class_id": list(range(classes))}), params=few))
    if images.shape != (classes, candidate.image_size, candidate.image_size, 3) or images.std() == 0:
        raise RuntimeError(f"the model loaded back from {model_uri} does not sample: {images.shape}")
    stage("registration", f"loaded back {model_uri} and drew {classes} images")


def _version_with(tracker: Tracker, name: str, tags: Mapping[str, str]) -> str | None:
    """Return the version of this checkpoint, settings and evaluation, if any: registering twice would make two."""
    versions = tracker.client.search_model_versions(f"name = '{name}'")
    same = [v for v in versions if all(v.tags.get(key) == tags[key] for key in _VERSION_TAGS)]
    return next((version.version for version in same), None)


def _give_alias(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> str:
    """Make the version champion when it is the first or better, otherwise challenger; returns which.

    What a person rolled back stays challenger, however good its number: only `mar registry promote` crowns it again.
    """
    champion = champion_of(client, name)
    if champion is not None and str(champion.version) == str(version):
        return CHAMPION
    try:
        better = champion is None or is_better(tags, champion.tags)
    except InputError:  # measured otherwise
        better = False
    if better and not is_rolled_back(client, name, tags[CHECKPOINT]):
        crown(client, name, str(version), str(champion.version) if champion else None)
        return CHAMPION
    client.set_registered_model_alias(name, CHALLENGER, version)
    return CHALLENGER


def _description(measured: EvaluationResult) -> str:
    beside = [("held-out real", measured.floor), ("untrained", measured.ceiling)]
    anchors = ", ".join(f"{name} {numbers[NAME]}" for name, numbers in beside if numbers)
    sampling = ", ".join(f"{key} {value}" for key, value in flatten(canonical(measured.sampling)).items())
    return f"{measured.metric} {measured.fd}{f' ({anchors})' if anchors else ''}, drawn as registered: {sampling}."
