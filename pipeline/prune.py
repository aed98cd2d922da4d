"""What no recipe needs any more below an output root: unfinished directories, and artifacts that nothing refers to.

Needed are the steps of the recipes there are, registered models, and what these rest on. Of a recipe that cannot be
planned here (its images are elsewhere, or it is not among the named ones) all is kept. A bucket of latents is shared,
so nothing in it is ever listed.
"""

import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.artifact import RECORD
from infra.cluster import Compute
from infra.errors import InputError
from infra.hold import holder, holding
from infra.storage import local_root, location, read_json
from pipeline.plan import Planner
from pipeline.recipe import Recipe

_SHARED = ("features", "trials")
"""Folders that all evaluations, or all sweeps, of a label share: needed as long as one of these is."""


@dataclass(frozen=True)
class Unneeded:
    """A directory that can go, how large it is, and why."""

    path: Path
    bytes: int
    why: str


def unneeded(recipes: Iterable[Recipe], compute: Compute) -> list[Unneeded]:
    """Return what can go, largest first. While a step is being made, finished artifacts stay: it may read them."""
    root = Path(str(local_root(compute.out)))
    folders = [path for path in sorted((root / "artifacts").glob("*/*/*")) if path.is_dir()]
    running = [path for path in folders if holder(location(path)) is not None]
    records = {path: _record(path) for path in folders if (path / RECORD).exists()}
    planned, named = _planned(recipes, compute)
    kept = set(records) if running else _reached(records, planned, named)
    kept |= {*planned, *running}
    labels = {path.parent for path in kept}
    kept |= {path for path in folders if path.name in _SHARED and path.parent in labels}
    unreferred = {*records, *(path for path in folders if path.name in _SHARED)}
    why = {path: "nothing refers to it" if path in unreferred else "unfinished" for path in folders}
    found = [Unneeded(path, _size(path), why[path]) for path in folders if path not in kept]
    return sorted(found, key=lambda item: -item.bytes)


def remove(items: Iterable[Unneeded]) -> list[Unneeded]:
    """Remove the directories; returns those that were, without any that a process began to make meanwhile."""
    removed = []
    for item in items:
        try:
            with holding(location(item.path)):
                (item.path / RECORD).unlink(missing_ok=True)  # first: no record, no artifact
                gone = item.path.rename(item.path.with_name(f"{item.path.name}.{uuid.uuid4().hex[:8]}.removed"))
        except InputError:
            continue
        shutil.rmtree(gone)  # out of the hold, which is renewed in the folder
        removed.append(item)
    return removed


def _planned(recipes: Iterable[Recipe], compute: Compute) -> tuple[set[Path], set[str]]:
    """Return the directories of the recipes' steps, and the names of those recipes that can be planned here."""
    paths, names = set[Path](), set[str]()
    for recipe in recipes:
        try:
            plan = Planner(recipe, compute).plan()
        except InputError:
            continue
        paths |= {Path(str(step.path)) for step in plan.steps.values()}
        names.add(recipe.name)
    return paths, names


def _reached(records: Mapping[Path, Mapping[str, Any]], planned: set[Path], named: set[str]) -> set[Path]:
    """Return the artifacts that are planned, registered or of an unknown recipe, and all that these were made from."""
    roots = [
        path for path, record in records.items()
        if path in planned or record.get("step") == "registration" or record.get("recipe", {}).get("name") not in named
    ]  # fmt: skip
    by_fingerprint = {path.name: path for path in records}
    reached = set[Path]()
    while roots:
        path = roots.pop()
        if path not in reached:
            reached.add(path)
            inputs = records[path].get("inputs", {}).values()
            roots += [by_fingerprint[name] for name in inputs if name in by_fingerprint]
    return reached


def _record(folder: Path) -> Mapping[str, Any]:
    """Return the record of an artifact; a damaged one is of an unknown recipe, and so is kept."""
    try:
        return read_json(folder / RECORD)
    except ValueError:
        return {}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
