"""Several evaluations as one self-contained HTML page: numbers with conditions, what differs, samples side by side."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from evaluate.conditions import comparable
from evaluate.metrics import frechet
from evaluate.report.page import render
from evaluate.results import EvaluationResult
from infra.artifact import RECORD, Artifact, load
from infra.cluster import Compute, recorded_at
from infra.errors import InputError
from infra.fingerprint import canonical, flatten
from infra.storage import location, read_json, write_atomic
from pipeline.plan import Planner
from pipeline.target import recipe_at

_MODEL = "models:/"
Rows = list[tuple[str, list[object]]]


@dataclass(frozen=True)
class Measured:
    """A word of the command, and the evaluation it names."""

    name: str
    artifact: Artifact[EvaluationResult]

    @property
    def result(self) -> EvaluationResult:
        """Numbers with conditions."""
        return self.artifact.result


def measured(word: str, compute: Compute) -> Measured:
    """Return the evaluation of a recipe, of an artifact.json, or of a registered version models:/NAME@ALIAS or /NUMBER.

    Raises InputError when there is none.
    """
    if word.startswith(_MODEL):
        found = _of_version(word, compute)
    else:
        found = _of_record(word) or Planner(recipe_at(word), compute).plan().steps["evaluation"].find()
    if found is None:
        raise InputError(f"{word}: was not evaluated yet; `mar evaluate {word}` first")
    return Measured(word, found)


def _of_record(word: str) -> Artifact[EvaluationResult] | None:
    """Return the evaluation whose record this file is, or None."""
    path = location(word)
    try:
        is_evaluation = path.name == RECORD and read_json(path).get("step") == "evaluation"
    except (OSError, ValueError, AttributeError):
        return None
    return load(path.parent, EvaluationResult) if is_evaluation else None


def _of_version(word: str, compute: Compute) -> Artifact[EvaluationResult] | None:
    root = location(compute.out)
    uri = recorded_at(compute, root)
    from mlflow.exceptions import MlflowException

    from infra.tracking import Tracker

    client, (name, at, which) = Tracker(uri, root).client, word.removeprefix(_MODEL).replace("/", "@").partition("@")
    if not at:
        raise InputError(f"{word}: give {_MODEL}NAME@ALIAS or {_MODEL}NAME/VERSION")
    try:
        of = client.get_model_version if which.isdigit() else client.get_model_version_by_alias
        fingerprint = of(name, which).tags.get("mar.evaluation", "")
    except MlflowException as error:
        raise InputError(f"{word}: {str(error).splitlines()[0][:200]}") from None
    folders = (root / "artifacts" / "evaluation").glob(f"*/{fingerprint}") if fingerprint else []
    found = next((artifact for folder in folders if (artifact := load(folder, EvaluationResult))), None)
    if found is None:
        raise InputError(f"{word}: its evaluation {fingerprint} is not below {root}; give --compute.out")
    return found


def write_comparison(compared: Sequence[Measured], path: UPath, compute: Compute) -> None:
    """Write the page; samples of other seeds are drawn anew."""
    from pipeline.compared import curves, samples

    names = [one.name for one in compared]
    text = render(
        Path(__file__).with_name("comparison.html"),
        title=" and ".join(names), names=names, warnings=warnings(compared), numbers=_numbers(compared),
        tables=(
            ("Conditions", _rows([_conditions(one.result) for one in compared])),
            ("What differs in their recipes", differing([one.artifact.record["recipe"] for one in compared])),
            ("What differs in how they were sampled", differing([_sampled(one.result) for one in compared])),
        ),
        grids=list(zip(names, map(_in_page, samples(compared, compute)), strict=True)),
        curves=curves(compared, compute),
    )  # fmt: skip
    write_atomic(path, text.encode())


def warnings(compared: Sequence[Measured]) -> list[str]:
    """Return why the numbers do not say which is better, or not by how much."""
    deficient = [one.name for one in compared if one.result.rank_deficient]
    first, found = compared[0], []
    if deficient:
        found.append(f"Fewer images than features: the distances of {', '.join(deficient)} are far from their limit.")
    for other in compared[1:]:
        if not comparable(first.result.conditions, other.result.conditions):
            fields = differing([asdict(one.result.conditions) for one in (first, other)])
            told = "; ".join(f"{name} {a} and {b}" for name, (a, b) in fields)
            found.append(f"The numbers of {first.name} and {other.name} are not comparable: {told}.")
    return found


def differing(trees: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the leaves that are not the same in all."""
    return [(name, cells) for name, cells in _rows(trees) if any(cell != cells[0] for cell in cells)]


def _rows(trees: Sequence[Mapping[str, Any]]) -> Rows:
    leaves = [flatten(dict(tree)) for tree in trees]
    names = dict.fromkeys(name for of in leaves for name in of)
    return [(name, [of.get(name, "(absent)") for of in leaves]) for name in names]


def _sampled(result: EvaluationResult) -> dict[str, Any]:
    """Return the sampling settings; images that were given have none."""
    return canonical(result.sampling) or {}


def _conditions(result: EvaluationResult) -> dict[str, object]:
    drawn = (
        {} if result.sampling is None else {"weights": "averaged (EMA)" if result.ema else "raw", "seed": result.seed}
    )
    return {**asdict(result.conditions), **drawn}


def _numbers(compared: Sequence[Measured]) -> Rows:
    names = dict.fromkeys(name for one in compared for name in one.result.numbers)
    rows: Rows = [("", [one.result.metric for one in compared])]
    return rows + [(_title(name), [_number(one.result, name) for one in compared]) for name in names]


def _title(name: str) -> str:
    return "Fréchet distance" if name == frechet.NAME else name.replace("_", " ")


def _number(result: EvaluationResult, name: str) -> str:
    error = f" ± {result.errors[name]:.2g}" if name in result.errors else ""
    return f"{result.numbers[name]:.4g}{error}" if name in result.numbers else ""


def _in_page(png: bytes) -> str:
    return base64.b64encode(png).decode()
