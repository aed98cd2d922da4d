"""Walks a plan: finished steps are cached, the others are made; each is recorded in MLflow from its artifact."""

import contextlib
import importlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from evaluate.config import DiffusionSteps
from infra.artifact import Artifact, Step, load
from infra.cluster import Compute, check_tracking, connected, tracking_uri
from infra.console import say, stage, table
from infra.fingerprint import fingerprint
from infra.follow import logged
from infra.storage import require_writable, write_json
from pipeline.plan import Plan, Planner
from pipeline.recipes import Recipe
from tokenize_jobs.config import FitTokenizer

if TYPE_CHECKING:
    from infra.tracking import Tracker

_STRIDES = {"kl16": 16, "taef2": 8, "pixels": 1}


@dataclass(frozen=True)
class Finished:
    """A step's artifact, and whether it was there before."""

    artifact: Artifact
    was_cached: bool


def run(recipe: Recipe, compute: Compute, last: str = "registration") -> dict[str, Finished]:
    """Make every step of the recipe up to `last` that is not made yet, record and print what came out.

    Raises InputError for what the user can mend; finished steps stay cached whatever happens.
    """
    live = _LiveMetrics()
    plan = Planner(recipe, compute, on_log=live).plan()
    require_writable(plan.root)
    uri = tracking_uri(compute, plan.root)
    registering = last == "registration"
    steps = plan.until("sweep" if registering else last)
    published = _published_path(plan, uri)
    if registering and (record := load(published)) is not None and all(step.find() for step in steps):
        done = {step.name: Finished(_require(step), was_cached=True) for step in steps}
        for name, finished in done.items():
            _say_cached(name, finished.artifact)
        _say_cached("registration", record)
        _summary(plan, done, record.measured)
        return done
    _check(recipe, compute, {step.name for step in steps if not step.find()})
    check_tracking(uri)
    # MLflow takes seconds to import, and so does a cluster to start: side by side
    threading.Thread(target=importlib.import_module, args=("infra.tracking",), daemon=True).start()
    with _cluster_if_needed(steps, compute):
        return _run(plan, steps, uri, live, published if registering else None)


def _check(recipe: Recipe, compute: Compute, pending: set[str]) -> None:
    """Raise InputError for what later steps would refuse, before days of training."""
    config, model, size = recipe.evaluate, recipe.train.model, _latent_size(recipe)
    sampling = config.generate.sampling
    if "checkpoint" in pending:
        recipe.train.check_workers(compute.train.workers)
        if size:
            recipe.train.check(size)
    if pending & {"reference", "evaluation"}:
        recipe.reference.features.check()
    if size:
        length = (size // model.patch_size) ** 2
        for setting in [sampling, *(recipe.tune.settings(sampling) if "sweep" in pending else [])]:
            setting.check(model, length)


def _latent_size(recipe: Recipe) -> int:
    """Return the side of the latents, or 0 where only the tokenizer's file tells."""
    tokenizer = recipe.tokenizer
    stride = tokenizer.stride if isinstance(tokenizer, FitTokenizer) else _STRIDES.get(tokenizer.kind)
    return recipe.tokenize.image_size // stride if stride else 0


def _run(plan: Plan, steps: list[Step], uri: str, live: "_LiveMetrics", published: UPath | None) -> dict[str, Finished]:
    """Make, record and, if there is a place for the record of it, register."""
    from infra.tracking import Tracker

    tracker = Tracker(uri, plan.root)
    parent = tracker.open(plan.recipe.name, fingerprint([step.fingerprint for step in plan.steps.values()]))
    live.follow(tracker, parent, plan)
    done: dict[str, Finished] = {}
    try:
        for step in steps:
            done[step.name] = _make(step)
            record_step(tracker, parent, step, done[step.name].artifact)
        measured = None if published is None else _register(tracker, parent, plan, done, published)
    except BaseException:
        tracker.finish(parent, failed=True)
        raise
    tracker.finish(parent)
    if measured is not None:
        _summary(plan, done, measured)
    return done


def _require(step: Step) -> Artifact:
    artifact = step.find()
    assert artifact is not None
    return artifact


def _cluster_if_needed(steps: list[Step], compute: Compute) -> Any:  # noqa: ANN401
    """Return one cluster for all steps that are still to be made, or nothing when there are none."""
    return contextlib.nullcontext() if all(step.find() for step in steps) else connected(compute)


def _make(step: Step) -> Finished:
    artifact = step.find()
    if artifact is not None:
        _say_cached(step.name, artifact)
        return Finished(artifact, was_cached=True)
    for line in step.explain_stale()[:5]:
        stage(step.name, f"differs from the one at hand: {line}")
    stage(step.name, f"making {step.path}")
    artifact = step.build()
    stage(step.name, f"done in {artifact.record['seconds']} s: {_headline(artifact.measured)}")
    return Finished(artifact, was_cached=False)


def _say_cached(name: str, artifact: Artifact) -> None:
    stage(name, f"cached ({artifact.record['fingerprint']}): {_headline(artifact.measured)}")


def _headline(measured: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in measured.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain.items()
    )


class _LiveMetrics:
    """Sends the training log to MLflow while training runs, at most every few seconds; never stops the training."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds, self.lines, self.last = every_seconds, [], 0.0
        self.target: tuple[Tracker, str, Plan] | None = None

    def follow(self, tracker: "Tracker", parent: str, plan: Plan) -> None:
        self.target = (tracker, parent, plan)

    def __call__(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.target is None or time.monotonic() - self.last < self.every_seconds:
            return
        tracker, parent, plan = self.target
        try:
            step = plan.steps["checkpoint"]
            tracker.history(tracker.open(step.name, step.fingerprint, parent), self.lines)
            self.lines = []
        except Exception as error:  # noqa: BLE001  the log stays on disk, and is recorded when the step is done
            stage("checkpoint", f"MLflow is away ({type(error).__name__}); the log is recorded later")
        self.last = time.monotonic()


def record_step(tracker: "Tracker", parent: str, step: Step, artifact: Artifact) -> None:
    """Record a step as a child run, from its artifact alone; nothing if it was recorded before."""
    if tracker.is_finished(step.fingerprint, parent):
        return
    record = artifact.record
    run = tracker.open(
        step.name, step.fingerprint, parent, {"mar.path": str(artifact.path), "mar.commit": record["commit"]}
    )
    tracker.params(run, {step.name: record["config"]})
    tracker.metrics(run, {**artifact.measured, "seconds": record["seconds"]})
    log = artifact.path / "metrics.jsonl"
    if step.name == "checkpoint" and log.exists():
        tracker.history(run, logged(Path(str(log))))
    if step.name == "latents":
        digest, path = artifact.fingerprint, str(artifact.path)
        profile = json.dumps({"images": artifact.measured["images"], "latent_scale": artifact.measured["latent_scale"]})
        for target in (run, parent):
            tracker.dataset(target, f"latents-{record['label']}", digest, path, profile, "training")
    if step.name == "evaluation":
        measured = artifact.measured
        numbers = {
            **measured["numbers"],
            **{f"{name}_{suffix}": value for suffix, of in (("heldout", "floor"), ("untrained", "ceiling"))
               for name, value in measured[of].items()},
        }  # fmt: skip
        tracker.tags(run, {"metric": measured["metric"], **_flat_conditions(artifact)})
        tracker.metrics(run, numbers)
        for target in (run, parent):
            tracker.image(target, artifact.path / "grid.png", "samples/grid")
        tracker.metrics(parent, numbers)
        tracker.tags(parent, {"metric": artifact.measured["metric"]})
    if step.name == "sweep":
        _record_trials(tracker, run, artifact)
    tracker.finish(run)


def _flat_conditions(artifact: Artifact) -> dict[str, str]:
    return {f"condition.{key}": json.dumps(value) for key, value in artifact.measured["conditions"].items()}


def _record_trials(tracker: "Tracker", sweep_run: str, artifact: Artifact) -> None:
    for result in artifact.measured["trials"]:
        identity = fingerprint([artifact.fingerprint, result["sampling"]])
        if tracker.is_finished(identity, sweep_run):
            continue
        sampling = result["sampling"]
        name = f"t{sampling['temperature']:g} cfg{sampling['cfg_scale']:g} ar{sampling['ar_steps']}"
        trial = tracker.open(name, identity, sweep_run, {"metric": artifact.measured["metric"]})
        tracker.params(trial, {"sampling": sampling})
        tracker.metrics(trial, {**result["numbers"], "seconds": result["seconds"]})
        picture = artifact.path / "trials" / f"{fingerprint([sampling, result['images'], result['seed']])}.png"
        if picture.exists():
            tracker.image(trial, picture, "samples/grid")
        tracker.finish(trial)


def _published_path(plan: Plan, uri: str) -> UPath:
    """Return where the record of registering is: being registered in one MLflow store says nothing of another."""
    identity = fingerprint([*(plan.steps[name].fingerprint for name in ("evaluation", "sweep")), uri])
    return plan.root / "artifacts" / "registration" / plan.recipe.name / identity


def _register(
    tracker: "Tracker", parent: str, plan: Plan, done: dict[str, Finished], published: UPath
) -> dict[str, Any]:
    from pipeline.registry import register

    start = time.monotonic()
    tracker.params(parent, {"recipe": done["checkpoint"].artifact.record["recipe"]})
    measured = register(tracker, parent, plan)
    seconds = round(time.monotonic() - start, 2)
    stage("registration", f"done in {seconds} s: {_headline(measured)}")
    write_json(published / "artifact.json", {"fingerprint": published.name, "measured": measured, "seconds": seconds})
    return measured


def say_distances(evaluation: Artifact) -> None:
    """Print what an evaluation measured, beside its anchors and with its conditions."""
    measured, conditions = evaluation.measured, evaluation.measured["conditions"]
    say()
    sets = (("trained model", "numbers"), ("untrained model (ceiling)", "ceiling"), ("held-out real (floor)", "floor"))
    rows = [(name, *measured[of].values()) for name, of in sets if measured[of]]
    say(table(rows, ("against real images", measured["metric"])))
    sampling = measured["sampling"]
    steps = f"{sampling['ar_steps']} AR x {DiffusionSteps(**sampling['diffusion_steps']).label()} diffusion steps"
    say(
        f"  {conditions['reference_images']} reference images, {measured['heldout_images']} held out; "
        f"{'EMA' if measured['ema'] else 'raw'} weights; "
        f"{steps}, CFG {sampling['cfg_scale']} {sampling['cfg_schedule']}, temperature {sampling['temperature']}; "
        f"{sampling['precision']}, seed {measured['seed']}"
        + ("; fewer images than features: compare within this table only" if measured["rank_deficient"] else "")
    )


def _summary(plan: Plan, done: dict[str, Finished], registered: Mapping[str, Any]) -> None:
    evaluation, sweep = done["evaluation"].artifact, done["sweep"].artifact
    say_distances(evaluation)
    say(
        f"  best of {len(sweep.measured['trials'])} trials: {sweep.measured['metric']} at "
        f"{sweep.measured['best_label']}"
    )
    say()
    say(table([(name, "cached" if f.was_cached else "made", f.artifact.record["seconds"]) for name, f in done.items()],
              ("step", "", "seconds")))  # fmt: skip
    say()
    say(f"samples:    {evaluation.path / 'grid.png'}")
    say(f"model:      {registered['name']} version {registered['version']}, alias '{registered['alias']}'")
    if "attribution" in (pictures := done["pictures"].artifact.measured if "pictures" in done else {}):
        say(f"pictures:   {pictures['attribution']}")
    say(f"MLflow UI:  mar ui --compute.out {plan.root}")
