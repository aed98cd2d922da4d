"""The space of trainings: which fields each replaces, and what is refused before anything is trained."""

import json
from dataclasses import replace

import pytest

from infra.cluster import Compute
from infra.errors import InputError
from infra.stages import ElasticStage
from pipeline.plan import Planner
from pipeline.recipe import with_fields
from pipeline.recipes import emoji_32
from pipeline.steps import Plan
from pipeline.trainings import planned_trainings, rule_of, trainings_of
from tune.config import FieldSweep, HeadSweep, NoSweep


def steps(tune, root):
    return Planner(replace(emoji_32(), tune=tune), Compute(out=str(root))).plan().steps


def test_every_combination_of_sizes_is_a_training_of_its_own(tmp_path):
    sweep = HeadSweep(width=(32, 64), depth=(1, 2), train_steps=7)
    recipes = [with_fields(emoji_32(), fields) for fields in sweep.fields()]
    assert {(r.train.model.head.width, r.train.model.head.depth) for r in recipes} == {
        (32, 1),
        (32, 2),
        (64, 1),
        (64, 2),
    }
    assert {r.train.train_steps for r in recipes} == {7}
    inputs = steps(sweep, tmp_path)["sweep"].inputs
    assert len({value for name, value in inputs.items() if name.startswith("trial")}) == 4


def test_training_that_equals_the_recipes_own_is_its_checkpoint(tmp_path):
    head = emoji_32().train.model.head
    made = steps(HeadSweep(width=(head.width, 64), depth=(head.depth,)), tmp_path)
    assert made["sweep"].inputs["trial 0"] == made["checkpoint"].fingerprint != made["sweep"].inputs["trial 1"]


def test_recipes_own_model_is_what_is_evaluated_whatever_trainings_are_swept(tmp_path):
    none, swept = steps(NoSweep(), tmp_path), steps(HeadSweep(width=(64,)), tmp_path)
    assert none["evaluation"].fingerprint == swept["evaluation"].fingerprint
    names = list(swept)
    assert names.index("sweep") < names.index("checkpoint") < names.index("evaluation")


def test_any_typed_field_is_searched():
    sweep = FieldSweep(space=("train.lr=[0.001, 0.002]", 'train.lr_schedule=["constant"]'))
    assert [with_fields(emoji_32(), of).train.lr for of in sweep.fields()] == [0.001, 0.002]
    assert {with_fields(emoji_32(), of).train.lr_schedule for of in sweep.fields()} == {"constant"}


@pytest.mark.parametrize(
    ("variances", "reduction", "metric"),
    [(["learned"], 3, "heldout_mse"), (["fixed"], 3, "heldout_loss"), (["fixed", "learned"], 0, "heldout_loss")],
)
def test_trainings_are_told_apart_by_what_each_of_them_reports(variances, reduction, metric, tmp_path):
    def plan(recipe):
        return Planner(recipe, Compute(out=str(tmp_path))).plan()

    space = (f"train.model.head.variance={json.dumps(variances)}", "train.model.head.width=[32, 64]")
    sweep, reference = FieldSweep(space=space, reduction=reduction), plan(emoji_32()).steps["reference"].fingerprint
    planned = planned_trainings(emoji_32(), sweep, reference, ElasticStage(), plan)
    assert rule_of(planned, sweep, is_held_out=True).metric == metric
    if len(variances) > 1:
        with pytest.raises(InputError, match="across kinds of heads"):
            rule_of(planned, replace(sweep, reduction=3), is_held_out=True)


def test_trainings_know_how_many_parameters_are_the_heads(tmp_path, monkeypatch):
    compute = Compute(out=str(tmp_path))

    def plan(recipe):
        return Planner(recipe, compute).plan()

    monkeypatch.setattr(Plan, "until", lambda *_: [None])  # nothing is made
    sweep = HeadSweep(width=(32, 64), depth=(2,))
    planned = planned_trainings(
        emoji_32(), sweep, plan(emoji_32()).steps["reference"].fingerprint, ElasticStage(), plan
    )
    narrow, wide = trainings_of(planned, "", 32, compute, ())
    assert 0 < narrow.head_parameters < wide.head_parameters < wide.parameters
    assert narrow.parameters - narrow.head_parameters == wide.parameters - wide.head_parameters


@pytest.mark.parametrize("width", [(64, 256, 384), (384, 64, 256), (256, 64), (64, 384)])
def test_recipes_own_training_sets_the_bar_that_stops_others_wherever_it_stands_among_them(
    width, tmp_path, monkeypatch
):
    compute = Compute(out=str(tmp_path))

    def plan(recipe):
        return Planner(recipe, compute).plan()

    monkeypatch.setattr(Plan, "until", lambda *_: [None])  # nothing is made
    steps = plan(emoji_32()).steps
    sweep = HeadSweep(width=width, depth=(3,))
    planned = planned_trainings(emoji_32(), sweep, steps["reference"].fingerprint, ElasticStage(), plan)
    trainings = trainings_of(planned, steps["checkpoint"].fingerprint, 32, compute, ())
    expected = sorted(width, key=lambda of: of != emoji_32().train.model.head.width)
    assert [json.loads(of.fields["train.model.head.width"]) for of in trainings] == expected


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (HeadSweep(width=()), "searches nothing"),
        (FieldSweep(), "searches nothing"),
        (HeadSweep(width=(64, 32, 64)), "names a value twice"),
        (HeadSweep(width=(64, 0)), "head.width 0 is below 1"),
        (HeadSweep(images=1), "at least two images"),
        (FieldSweep(space=("train.lrr=[1]",)), "no field train.lrr. Did you mean 'train.lr'"),
        (FieldSweep(space=("train.lr=0.1",)), "a list of values"),
        (FieldSweep(space=("train.lr=[]",)), "a list of values"),
        (FieldSweep(space=('train.lr=["fast"]',)), "train.lr"),
        (FieldSweep(space=("train.lr=[1.0]", "train.lr=[2.0]")), "names a field twice"),
        (FieldSweep(space=("train.model.patch_size=[3]",)), "patch-size 3 does not divide"),
    ],
)  # fmt: skip
def test_space_that_makes_no_sense_is_refused_before_anything_is_trained(sweep, message, tmp_path):
    with pytest.raises(InputError, match=message):
        steps(sweep, tmp_path)
