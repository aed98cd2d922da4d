"""The trainings of a sweep: the checkpoints of a recipe with other fields, planned like any other."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from upath import UPath

from evaluate.config import Subject
from infra.errors import InputError
from infra.fingerprint import canonical
from pipeline.recipes import Recipe, with_fields
from pipeline.steps import Plan
from train.results import CheckpointResult
from tune.config import NoSweep, TrainingSweep

if TYPE_CHECKING:
    from infra.artifact import Artifact, Step
    from tune.training_sweep import Training


def planned_trainings(recipe: Recipe, sweep: TrainingSweep, plan: Callable[[Recipe], Plan]) -> Mapping[str, Plan]:
    """Return the plan of each trial by its label. Raises InputError for what cannot be trained so."""
    if recipe.checkpoint:
        raise InputError(
            f"--tune.kind {sweep.kind} trains, but --checkpoint gives the model: take --tune.kind sampling"
        )
    chosen = sweep.fields()
    if not chosen:
        raise InputError(f"--tune.kind {sweep.kind} searches nothing: give values to try")
    own = replace(recipe, tune=NoSweep())
    planned = {_label(fields): plan(with_fields(own, fields)) for fields in chosen}
    for trial in planned.values():
        trial.check(("checkpoint", "evaluation"), 1)
    return planned


def trainings_of(planned: Mapping[str, Plan], image_size: int) -> "list[Training]":
    """Return the trials as the sweep takes them: each finds or makes its checkpoint."""
    from tune.training_sweep import Training

    return [
        Training(
            label, Subject(str(plan.path("checkpoint")), plan.tokenizer, image_size),
            plan.steps["checkpoint"].fingerprint, partial(_trained, plan),
        )
        for label, plan in planned.items()
    ]  # fmt: skip


def _trained(plan: Plan) -> CheckpointResult:
    return [step.find() or step.build() for step in plan.until("checkpoint")][-1].result


def _label(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name.removeprefix('train.')} {value}" for name, value in fields.items())


def shorter(step: "Step[CheckpointResult]", train_steps: int) -> UPath | None:
    """Return the longest finished training that the training `step` of so many steps begins like; None if none is.

    With a constant learning rate the number of steps changes no step before. It was made by the present code.
    """
    if step.again or canonical(step.config)["lr_schedule"] != "constant":
        return None

    def begins_like(found: "Artifact[CheckpointResult]") -> bool:
        mine, other = ({**identity, "config": {**identity["config"], "train_steps": 0}} for identity in (
            json.loads(json.dumps(step.identity)), {key: found.record[key] for key in step.identity}
        ))  # fmt: skip
        return mine == other and not step.changed_code(found) and found.result.train_steps < train_steps

    fitting = [found for found in step.others() if begins_like(found)]
    return max(fitting, key=lambda found: found.result.train_steps).path if fitting else None
