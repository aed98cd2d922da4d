"""A next-scale model is one graph, whose tokenizer's own parts are left as they are."""

import pytest
import torch

from tests.train.test_var import small_var, some_codes
from train.ema import EMA
from train.models.autoregressor import compile_training, stacked


@pytest.mark.parametrize("changes", [{}, {"adaln": "shared"}], ids=str)
def test_compiled_model_gives_the_conditions_and_gradients_of_the_plain_one(changes):
    torch.compiler.reset()
    plain, compiled, codes = small_var(**changes).train(), small_var(**changes).train(), some_codes()
    compiled.load_state_dict(plain.state_dict())
    compile_training(compiled, backend="eager")
    drop, order, found = torch.tensor([False, True]), torch.arange(14).expand(2, -1), []
    for model in (plain, compiled):
        conditions = model(codes, torch.tensor([0, 3]), drop, order, 0)
        conditions.square().mean().backward()
        found.append((conditions, [of.grad for of in model.parameters() if of.grad is not None]))
    (expected, gradients), (conditions, ours) = found
    torch.testing.assert_close(conditions, expected)
    torch.testing.assert_close(ours, gradients)


def test_blocks_are_those_of_the_trunk_in_a_frozen_average_too():
    model = small_var()
    for each in (model, EMA(model, 0.9).model):
        assert stacked(each) == list(each.blocks)
