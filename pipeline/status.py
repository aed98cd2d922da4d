"""What is cached, made by other code, stale and why, running or missing; makes nothing."""

from collections.abc import Collection, Mapping
from pathlib import Path

from upath import UPath

from infra.artifact import Step
from infra.cluster import Compute
from infra.console import table
from infra.follow import logged
from infra.hold import holder
from pipeline.plan import Planner
from pipeline.recipe import Recipe
from tokenize_jobs.sources.listing import ImageFiles, Images


def status(
    recipe: Recipe, compute: Compute, again: Collection[str] = (), scanned: Mapping[ImageFiles, Images] | None = None
) -> str:
    """Return a table of the recipe's steps, and why those that are not as they should be are not."""
    plan = Planner(recipe, compute, again=again, scanned=dict(scanned or {})).plan()
    rows, reasons, outdated = [], list[str](), set[str]()
    for name, step in plan.steps.items():
        state, finished, why = _state(step, outdated)
        if state == "outdated":
            outdated.add(name)
        rows.append((name, state, step.fingerprint, finished))
        reasons += [f"  {name}: {line}" for line in why]
    text = table(rows, ("step", "state", "fingerprint", "finished"))
    return f"{text}\n\nwhat differs:\n" + "\n".join(reasons) if reasons else text


def _progress(folder: UPath) -> str:
    """Return how far a step is, where it tells: its last logged step, or the shards committed."""
    for log in ("metrics.jsonl", "fit.jsonl"):
        if lines := logged(Path(str(folder / log))):
            return f", step {lines[-1]['step']}"
    count = len(list((folder / "commits").glob("*.json")))
    return f", {count} commits" if count else ""


def _state(step: Step, outdated: set[str]) -> tuple[str, str, list[str]]:
    """Return state, time and reasons; `outdated` are the steps before it that other code made."""
    artifact = step.find()
    if artifact is None:
        if (by := holder(step.path)) is not None:
            return "running", "", [f"made by {by}{_progress(step.path)}"]
        stale = step.explain_stale()
        return ("stale" if stale else "missing"), "", stale
    files, follows = step.changed_code(artifact), sorted(outdated & set(step.inputs))
    why = [f"made by other code; since then changed: {', '.join(files)} (`--again {step.name}`)"] if files else []
    why += [f"follows from {', '.join(follows)}, which other code made"] if follows else []
    return ("outdated" if why else "cached"), artifact.record["finished"][:19], why
