"""Versions of a registered model: ranked under equal conditions, promoted when they are better, rolled back.

A version holds its number, the number's standard error and its conditions as tags; the champion holds which version it
followed.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from evaluate.conditions import Conditions
from evaluate.metrics.frechet import NAME
from infra.errors import InputError
from infra.from_json import from_json

CHAMPION, CHALLENGER = "champion", "challenger"
ERROR, CONDITIONS, PREVIOUS = f"{NAME}_error", "conditions", "mar.previous_champion"
CHECKPOINT = "mar.checkpoint"
ROLLED_BACK = "mar.rolled_back"
"""Tag of a version that a person took the alias from: no run gives it back to its checkpoint, a promotion does."""
LINEAGE = ("mar.recipe", "mar.model", CHECKPOINT, "mar.latents", "mar.source", "mar.evaluation", "mar.commit")
_Z = 1.96  # 95 % of a normal distribution
_MARGIN = 0.05  # of a number without an error: what must lie between two before one is called better


def versions_of(client: MlflowClient, name: str) -> list[Any]:
    """Return the versions of a model, the newest first. Raises InputError when there are none."""
    try:
        found = client.search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        raise InputError(f"registered model {name}: {_first_line(error)}") from None
    if not found:
        raise InputError(f"registered model {name}: there is none; `mar registry list` names those there are")
    return sorted(found, key=lambda version: -int(version.version))


def champion_of(client: MlflowClient, name: str) -> Any | None:  # noqa: ANN401
    """Return the version with the alias champion, or None."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Return the conditions, as 'images 64 and 128', that differ between two versions' tags."""
    one, other = _conditions(first), _conditions(second)
    names = [field.name for field in dataclasses.fields(Conditions)]
    return [f"{n} {getattr(one, n)} and {getattr(other, n)}" for n in names if getattr(one, n) != getattr(other, n)]


def is_better(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Tell whether the first version's number is smaller beyond the error bar of the difference.

    Raises InputError naming the conditions that differ: such numbers say nothing of each other.
    """
    if differ := differing(first, second):
        raise InputError(f"the numbers were not measured under the same conditions: {'; '.join(differ)}")
    return _number(first, NAME) < _number(second, NAME) - margin(first, second)


def margin(first: Mapping[str, str], second: Mapping[str, str]) -> float:
    """Return what must lie between two numbers: 1.96 standard errors of their difference, or 5 % without errors."""
    if ERROR in first and ERROR in second:
        return _Z * math.hypot(_number(first, ERROR), _number(second, ERROR))
    return _MARGIN * _number(second, NAME)


def promote(client: MlflowClient, name: str, number: str) -> str:
    """Make a version champion; returns what was done.

    Raises InputError unless it is better than the champion beyond the error bar, under the same conditions.
    """
    versions = versions_of(client, name)
    version = next((found for found in versions if str(found.version) == number), None)
    if version is None:
        raise InputError(f"{name} has no version {number}; `mar registry list` names those there are")
    champion = champion_of(client, name)
    if champion is None:
        crown(client, name, number, None)
        return f"{name} version {number} is champion, the first"
    if str(champion.version) == number:
        return f"{name} version {number} is champion already"
    told = f"{name} version {number} ({told_number(version.tags)}), champion version {champion.version}"
    told += f" ({told_number(champion.tags)})"
    if not is_better(version.tags, champion.tags):
        needed = margin(version.tags, champion.tags)
        raise InputError(f"{told}: not better by more than {needed:.3g}, so the champion stays")
    for other in versions:
        if ROLLED_BACK in other.tags and (
            other is version or other.tags.get(CHECKPOINT) == version.tags.get(CHECKPOINT)
        ):
            client.delete_model_version_tag(name, str(other.version), ROLLED_BACK)
    crown(client, name, number, str(champion.version))
    return f"{told}: version {number} is champion now"


def rollback(client: MlflowClient, name: str) -> str:
    """Give the alias back to the champion before; returns what was done. Raises InputError when there was none."""
    versions = versions_of(client, name)
    champion = champion_of(client, name)
    previous = champion.tags.get(PREVIOUS) if champion else None
    if champion is None or previous not in {str(version.version) for version in versions}:
        raise InputError(f"{name}: no champion before the present one is known; nothing was changed")
    client.set_model_version_tag(name, str(champion.version), ROLLED_BACK, "yes")
    client.set_registered_model_alias(name, CHAMPION, previous)
    client.set_registered_model_alias(name, CHALLENGER, str(champion.version))
    return f"{name} version {previous} is champion again, version {champion.version} is challenger"


def crown(client: MlflowClient, name: str, number: str, previous: str | None) -> None:
    """Make a version champion and the one before it challenger; the history first: a rollback needs it."""
    if previous is not None:
        client.set_model_version_tag(name, number, PREVIOUS, previous)
        client.set_registered_model_alias(name, CHALLENGER, previous)
    client.set_registered_model_alias(name, CHAMPION, number)


def is_rolled_back(client: MlflowClient, name: str, checkpoint: str) -> bool:
    """Tell whether a person took the alias from a version of this checkpoint, and has not promoted it since."""
    versions = client.search_model_versions(f"name = '{name}'")
    return any(ROLLED_BACK in version.tags and version.tags.get(CHECKPOINT) == checkpoint for version in versions)


def ranked(versions: list[Any]) -> list[list[Any]]:
    """Return the versions in groups of equal conditions, each with the smallest number first; others are left out."""
    groups: dict[str, list[Any]] = {}
    for version in versions:
        if NAME in version.tags and CONDITIONS in version.tags:
            groups.setdefault(version.tags[CONDITIONS], []).append(version)
    return [sorted(group, key=lambda version: _number(version.tags, NAME)) for group in groups.values()]


def told_number(tags: Mapping[str, str]) -> str:
    """Return a version's number with its error, and whether fewer images than features tell it."""
    if NAME not in tags:
        return "no number"
    error = f" ± {_number(tags, ERROR):.2g}" if ERROR in tags else ""
    deficient = ", rank-deficient" if CONDITIONS in tags and _conditions(tags).is_rank_deficient else ""
    return f"{_number(tags, NAME):.4g}{error}{deficient}"


def _number(tags: Mapping[str, str], name: str) -> float:
    try:
        value = float(tags[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"a version's tag {name} is {tags[name]!r}, not a number: correct it in MLflow")
    return value


def _conditions(tags: Mapping[str, str]) -> Conditions:
    if CONDITIONS not in tags or NAME not in tags:
        raise InputError("a version without a measured number: it was registered by other means, and cannot be ranked")
    return from_json(tags[CONDITIONS], Conditions, "the version's conditions")


def _first_line(error: MlflowException) -> str:
    return str(error).splitlines()[0][:200]
