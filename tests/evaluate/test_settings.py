"""A setting that chooses among names has one entry a name in the table that reads it."""

import math
import typing
from dataclasses import replace

import pytest

from evaluate.config import CFG_SCHEDULES, STEP_SHAPES, DiffusionSteps, Order, Sampling
from evaluate.likelihood import _steps_told
from evaluate.sampling.orders import RANKS
from evaluate.sampling.sampler import check
from infra.errors import InputError
from tests.small_model import small, small_of_codes
from train.config import Train
from train.models.diffloss import SOLVERS
from train.models.flow import SOLVERS as FLOW_SOLVERS
from train.models.heads import CategoricalHead, DiffusionHead, FlowHead, MixtureHead, RegressionHead, Solver
from train.models.tokens import CodeTokens
from train.models.trunks import ORDERS, CausalTrunk
from train.optimizer import DECAYS


def choices(config, field):
    return set(typing.get_args(typing.get_type_hints(config)[field]))


@pytest.mark.parametrize(
    ("chosen", "table"),
    [
        (choices(Train, "lr_schedule"), DECAYS),
        (set(typing.get_args(Solver)), SOLVERS),
        (set(FlowHead.solvers), FLOW_SOLVERS),
        (set(typing.get_args(Order)), RANKS),
        (choices(CausalTrunk, "order"), ORDERS),
        (choices(DiffusionSteps, "shape"), STEP_SHAPES),
        (choices(Sampling, "cfg_schedule"), CFG_SCHEDULES),
    ],
)
def test_choices_of_a_setting_are_the_keys_of_its_table(chosen, table):
    assert chosen == set(table)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (DiffusionHead(), "10 AR x 100 diffusion steps, CFG 2.5 steps, temperature 0.9 on the noise"),
        (CategoricalHead(), "10 AR steps, CFG 2.5 steps, temperature 0.9 on the logits, top-k 900, top-p 0.96"),
        (MixtureHead(), "10 AR steps, CFG 2.5 steps, temperature 0.9 on the deviations"),
        (RegressionHead(), "10 AR steps, CFG 2.5 steps"),
    ],
)
def test_of_a_head_only_settings_that_count_are_told(head, told):
    filters = {"top_k": 900, "top_p": 0.96} if head.draws == "codes" else {}
    settings = Sampling(ar_steps=10, cfg_scale=2.5, cfg_schedule="steps", temperature=0.9, **filters)
    head.check(settings.head_at(0))
    assert settings.told(head) == told


def test_drawing_without_a_class_is_refused_where_none_was_ever_dropped():
    with pytest.raises(InputError, match="label_drop 0"):
        check(small(label_drop=0.0), Sampling(ar_steps=2), None)


def test_likelihood_of_order_by_confidence_is_told_to_be_of_random_order():
    of_codes = replace(small(), tokens=CodeTokens(codebook_size=7), head=CategoricalHead())
    assert _steps_told(of_codes, Sampling(ar_steps=4, order="confidence")) == "drawn in 4 steps, in random order"
    assert _steps_told(of_codes, Sampling(ar_steps=4)) == "drawn in 4 steps"


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"max_timestep": 1000}, "from 0 to 999"), ({"max_timestep": -1}, "from 0 to 999"),
     ({"diffusion_steps": DiffusionSteps(first=1001, last=1001)}, "at most 1000")], ids=str,
)  # fmt: skip
def test_starts_and_steps_beyond_the_process_are_refused(setting, told):
    with pytest.raises(InputError, match=told):
        Sampling(ar_steps=2, **setting).check(small())


@pytest.mark.parametrize("name", ["temperature", "cfg_scale", "choice_temperature"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_scales_that_are_no_numbers_or_below_zero_are_refused(
    name, value
):  # codes drawn from no numbers look like codes
    with pytest.raises(InputError, match=f"{name} is {value}; it must be a number"):
        Sampling(ar_steps=2, **{name: value}).check(small_of_codes())
