"""Walks a plan: finished steps are cached, the others are made; each is recorded in MLflow from its artifact."""

import contextlib
import importlib
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from upath import UPath

from infra.artifact import Artifact, Step, git_commit
from infra.cluster import Compute, check_tracking, connected, tracking_uri
from infra.console import complain, stage
from infra.errors import InputError
from infra.storage import read_json, require_writable, write_json
from pipeline.links import Pages, links
from pipeline.measuring import planner
from pipeline.recipe import Recipe
from pipeline.record import LiveMetrics, record_step, told_apart
from pipeline.steps import Finished, Plan, run_identity
from pipeline.summary import say_links, served, summary
from tokenize_jobs.sources.listing import ImageFiles, Images

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking import Tracker


def run(
    recipe: Recipe, compute: Compute, last: str = "registration", again: Collection[str] = (),
    scanned: Mapping[ImageFiles, Images] | None = None,
) -> dict[str, Finished]:  # fmt: skip
    """Make every step of the recipe up to `last` that is not made yet, record and print what came out.

    The steps `again`, and what follows from them, are made anew by the present code. Raises InputError for what the
    user can mend; finished steps stay cached whatever happens. What is `scanned` is not listed again.
    """
    live = LiveMetrics()
    plan = planner(recipe, compute, last, on_log=live, again=again, scanned=scanned).plan()
    require_writable(plan.root)
    uri, steps = tracking_uri(compute, plan.root), plan.until(last)
    pending = [step.name for step in steps if not step.find()]
    if pending:
        plan.check(pending, compute.train.workers, compute.train.most_workers, compute.train.gpus)
        check_tracking(uri)
    pages = [] if pending else _recorded_whole(steps)
    done, pages = (_all_cached(steps), pages) if pages else _run(plan, steps, compute, uri, live)
    if {"evaluation", "reconstruction"} & set(done):
        summary(plan, done)
    if pages and last in ("sweep", "registration"):
        say_links(pages, served(uri, plan.root))
    return done


def _all_cached(steps: list[Step]) -> dict[str, Finished]:
    """Say that nothing is to be done."""
    return {step.name: _made(step) for step in steps}


def _run(
    plan: Plan, steps: list[Step], compute: Compute, uri: str, live: LiveMetrics
) -> tuple[dict[str, Finished], Pages]:
    """Make and record; returns the steps, and the run's pages."""
    # MLflow takes seconds to import, and so does a cluster to start: side by side
    threading.Thread(target=importlib.import_module, args=("infra.tracking",), daemon=True).start()
    with _cluster_if_needed(steps, compute):
        from infra.tracking import Tracker, answering

        tracker = Tracker(uri, plan.root)
        with answering(uri):
            parent = tracker.open(plan.recipe.name, plan.identity)
            tracker.params(parent, told_apart(plan.recipe))
            tracker.json(parent, "recipe.json", steps[-1].recipe)
        if "checkpoint" in plan.steps:
            live.follow(tracker, parent, plan.steps["checkpoint"], git_commit(), plan.recipe.train.train_steps)
        try:
            return _made_and_recorded(steps, tracker, parent)
        except BaseException:
            with contextlib.suppress(Exception):  # the store may be away too
                tracker.finish(parent, failed=True)
            raise


def _made_and_recorded(steps: list[Step], tracker: "Tracker", parent: str) -> tuple[dict[str, Finished], Pages]:
    """Make every step, whether or not it can be recorded, and finish the run; returns the steps, and the run's pages.

    Raises InputError at the end where some could not be; nothing is registered then: what is registered was recorded.
    """
    from infra.tracking import answering

    done: dict[str, Finished] = {}
    left = []
    for step in steps:
        if left and step.name == "registration":
            break
        done[step.name] = _made(step)
        if not _is_recorded(tracker, parent, step, done[step.name].artifact):
            left.append(step.name)
    if left:
        raise InputError(f"made, but not recorded at {tracker.uri}: {', '.join(left)}; the same command records them")
    registered = done["registration"].artifact if "registration" in done else None
    with answering(tracker.uri):
        tracker.finish(parent)
        pages = links(tracker, parent, registered and registered.result)
    if registered:
        write_json(_pages_path(steps), pages)
    return done, pages


def _recorded_whole(steps: list[Step]) -> Pages:
    """Return the pages of a run that is in MLflow to its registration, which need not be asked again; else none."""
    path = _pages_path(steps)
    return [(name, url) for name, url in read_json(path)] if path.exists() else []


def _pages_path(steps: list[Step]) -> UPath:
    """Return where the pages are kept: beside the last step's record, which several runs may share."""
    return steps[-1].path / f"pages.{run_identity({step.name: step for step in steps})}.json"


def _is_recorded(tracker: "Tracker", parent: str, step: Step, artifact: Artifact) -> bool:
    from infra.tracking import answering

    try:
        with answering(tracker.uri):
            record_step(tracker, parent, step, artifact)
    except InputError as error:
        complain(f"{step.name} is not recorded: {error}")
        return False
    return True


def _cluster_if_needed(steps: list[Step], compute: Compute) -> Any:  # noqa: ANN401
    """Return one cluster for all steps that are still to be made, or nothing when there are none but registration."""
    needed = any(not step.find() for step in steps if step.name != "registration")
    return connected(compute) if needed else contextlib.nullcontext()


def _made(step: Step) -> Finished:
    artifact = step.find()
    if artifact is not None:
        stage(step.name, f"cached ({artifact.fingerprint}): {artifact.result.headline()}")
        _say_changed_code(step, artifact)
        return Finished(artifact, was_cached=True)
    for line in step.explain_stale()[:5]:
        stage(step.name, f"differs from the one at hand: {line}")
    stage(step.name, f"making {step.path}")
    artifact = step.build()
    stage(step.name, f"done in {artifact.record['seconds']} s: {artifact.result.headline()}")
    return Finished(artifact, was_cached=False)


def _say_changed_code(step: Step, artifact: Artifact) -> None:
    """Say which code has changed since the artifact was made: its numbers are the old code's."""
    if files := step.changed_code(artifact):
        stage(step.name, f"made by other code; since then changed: {', '.join(files)}")
        stage(step.name, f"`--again {step.name}` makes it anew, and what follows from it")
