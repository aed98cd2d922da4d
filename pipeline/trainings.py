"""The trainings of a sweep: the checkpoints of a recipe with other fields, planned like any other."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from evaluate.config import Subject
from infra.errors import InputError
from pipeline.recipes import Recipe, with_fields
from pipeline.steps import Plan
from train.results import CheckpointResult
from tune.config import NoSweep, TrainingSweep

if TYPE_CHECKING:
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
