"""The trainings of a sweep: the checkpoints of a recipe with other fields, planned like any other."""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from evaluate.subject import Subject
from infra.cluster import Compute
from infra.console import stage as say_of
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.stages import ElasticStage
from pipeline.recipe import Recipe, with_fields
from pipeline.steps import Plan
from train.models.heads import DiffusionHead, Head
from train.results import LOG, CheckpointResult
from tune.config import NoSweep, TrainingSweep

if TYPE_CHECKING:
    from infra.artifact import Artifact, Step
    from tune.halving import OnLine, Rule, Training

Planned = Mapping[str, tuple[Mapping[str, object], Plan]]


def planned_trainings(
    recipe: Recipe, sweep: TrainingSweep, reference: str, stage: ElasticStage, plan: Callable[[Recipe], Plan]
) -> Planned:
    """Return fields and plan of each trial by its label. Raises InputError for what cannot be trained, or compared, so.

    `reference` is the fingerprint of what the recipe is measured against, `stage` says who trains.
    """
    if recipe.checkpoint:
        raise InputError("--tune trains, but --checkpoint gives the model: take `mar tune MODEL --sweep sampling`")
    own = replace(recipe, tune=NoSweep())
    planned = {_label(fields): (fields, plan(with_fields(own, fields))) for fields in sweep.planned()}
    labels: dict[str, str] = {}
    for label, (_, trial) in planned.items():
        trial.check(("checkpoint", "evaluation"), stage.workers, stage.most_workers)
        if trial.steps["reference"].fingerprint != reference:
            raise InputError(f"--tune: {label} changes what is measured against: such trials cannot be compared")
        if (same := labels.setdefault(trial.steps["checkpoint"].fingerprint, label)) != label:
            raise InputError(f"--tune: {same} and {label} are the same training")
    return planned


def rule_of(planned: Planned, sweep: TrainingSweep, *, is_held_out: bool) -> "Rule":
    """Return which trainings are stopped. Raises InputError where nothing says which is better before its end."""
    from tune.halving import Rule

    recipes = [trial.recipe for _, trial in planned.values()]
    kinds = {(recipe.train.model.head.kind, _metric(recipe.train.model.head)) for recipe in recipes}
    latents = {(of.steps["checkpoint"].inputs["latents"], of.model.patch_size) for _, of in planned.values()}
    steps = max(recipe.train.train_steps for recipe in recipes)
    if sweep.reduction and not is_held_out:
        raise InputError(
            "--tune.reduction stops trainings by their loss on held-out images, and none are held out: give "
            "--images.heldout-share, or take --tune.reduction 0"
        )
    if sweep.reduction and (len(kinds) > 1 or len(latents) > 1):
        raise InputError(
            "--tune.reduction stops trainings by their loss, which says nothing across kinds of heads, or tokens of "
            "other tokenizers and patch sizes: take --tune.reduction 0"
        )
    if sweep.grace_steps >= steps:
        raise InputError(f"--tune.grace-steps {sweep.grace_steps}: a training has {steps} steps")
    grace = sweep.grace_steps or math.ceil(steps / max(sweep.reduction, 1) ** 2)
    grace = max(grace, *(recipe.train.checkpoint_every for recipe in recipes))  # there is no loss before
    metric, *others = {metric for _, metric in kinds}
    metric = "heldout_loss" if others else metric
    return Rule(metric, steps, grace, sweep.reduction if grace < steps else 0)


def _metric(head: Head) -> str:
    """Return the name, in a training's log, of what says how good it is: of two terms the mse."""
    return "heldout_mse" if isinstance(head, DiffusionHead) and head.variance == "learned" else "heldout_loss"


def checkpoints_of(planned: Planned) -> dict[str, str]:
    """Return the fingerprints of the trials' checkpoints."""
    return {f"trial {place}": plan.steps["checkpoint"].fingerprint for place, (_, plan) in enumerate(planned.values())}


def trainings_of(
    planned: Planned, own: str, image_size: int, compute: Compute, again: Collection[str]
) -> "list[Training]":
    """Make what the trials are trained on, and return them as the sweep takes them: each finds or makes its checkpoint.

    The recipe's own, whose checkpoint has the fingerprint `own`, comes first: one after the other, from weak to strong,
    none would be stopped. Latents are made here, one after the other: side by side they would wait for each other's
    workers.
    """
    from pipeline.operations import weights
    from tune.halving import Training

    trainings = []
    for label, (fields, plan) in sorted(
        planned.items(), key=lambda of: of[1][1].steps["checkpoint"].fingerprint != own
    ):
        for step in plan.until("checkpoint")[:-1]:
            _ = step.find() or step.build()
        checkpoint, counted = plan.steps["checkpoint"], weights(plan.model)
        trainings.append(Training(
            label=label, fields={name: json.dumps(value) for name, value in fields.items()},
            subject=Subject(str(checkpoint.path), plan.tokenizer, image_size, plan.recipe.evaluate.generate.use_ema),
            identity=checkpoint.fingerprint, steps=plan.recipe.train.train_steps, parameters=sum(counted),
            head_parameters=counted.head, log=str(checkpoint.path / LOG), is_made=checkpoint.find() is not None,
            make=partial(_trained, plan.recipe, compute, tuple(again), str(Path.cwd())),
        ))  # fmt: skip
    return trainings


def _trained(
    recipe: Recipe, compute: Compute, again: Collection[str], folder: str, on_line: "OnLine"
) -> CheckpointResult:
    """Find or make a checkpoint, in a process of its own, which plans it once more; paths are those in `folder`."""
    from pipeline.plan import Planner

    if Path(folder).is_dir():  # Tune's processes begin in folders of their own
        os.chdir(folder)
    step = Planner(recipe, compute, on_line, again).plan().steps["checkpoint"]
    return (step.find() or step.build()).result


def _label(fields: Mapping[str, object]) -> str:
    shown = {name.removeprefix("train.").removeprefix("model."): value for name, value in fields.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def shorter(step: "Step[CheckpointResult]", train_steps: int) -> UPath | None:
    """Return the longest finished training that the training `step` of so many steps begins like; None if none is.

    With a constant learning rate the number of steps changes no step before. Says where other code made it.
    """
    if step.again or canonical(step.config)["lr_schedule"] != "constant":
        return None

    def begins_like(found: "Artifact[CheckpointResult]") -> bool:
        mine, other = ({**identity, "config": {**identity["config"], "train_steps": 0}} for identity in (
            json.loads(json.dumps(step.identity)), {key: found.record[key] for key in step.identity}
        ))  # fmt: skip
        return mine == other and found.result.train_steps < train_steps

    fitting = [found for found in step.others() if begins_like(found)]
    longest = max(fitting, key=lambda found: found.result.train_steps, default=None)
    if longest is not None and (changed := step.changed_code(longest)):
        files = ", ".join(changed)
        say_of("checkpoint", f"{longest.path.name}: made by other code ({files}); --again checkpoint begins anew")
    return longest.path if longest else None
