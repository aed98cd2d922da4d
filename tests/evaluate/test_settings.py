"""A setting that chooses among names has one entry a name in the table that reads it."""

import typing

import pytest

from evaluate.config import CFG_SCHEDULES, STEP_SHAPES, DiffusionSteps, Order, Sampling
from evaluate.sampling.orders import RANKS
from train.config import Train
from train.models.diffloss import SOLVERS
from train.models.flow import SOLVERS as FLOW_SOLVERS
from train.models.heads import FlowHead, Solver
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
