"""Trunk and loss are one graph each, without breaks, and the step is the same; no code is generated here."""

from dataclasses import replace

import pytest
import torch

from tests.small_model import HEADS, TRUNKS, randomised, small
from tests.train.test_training import CONFIG, LABELS, TOKENS
from train.batches import StepInput, training_draws
from train.ema import EMA
from train.memory import recompute_blocks
from train.models.autoregressor import compile_training
from train.optimizer import Optimization
from train.step import training_step

STEPS = 4
MOST_GRAPHS = 6
"""Of trunk and loss: one of each for the first number of visible tokens, none, one, and for all others."""
CASES = [
    ("masked", "diffusion", True, "fp32"), ("random-causal", "flow", False, "fp32"),
    ("masked", "diffusion", False, "bf16"), ("masked", "flow", True, "bf16"),
]  # fmt: skip


def losses(shape, prepare, precision="fp32"):
    config = replace(CONFIG, precision=precision)
    model = randomised(shape, 4).train()
    ema, optimization, found = EMA(model, 0.9), Optimization(model, config), []
    prepare(model)
    for step in range(STEPS):
        inputs = StepInput(TOKENS, LABELS, training_draws(shape, 1, step, range(8)), dropout_seed=step)
        found.append(training_step(model, model, ema, optimization, [inputs])["loss"].item())
    return found


def compiled(recomputing, graphs):
    """Return what compiles a model, keeping each of its graphs."""

    def as_it_is(graph, _):
        graphs.append(graph)
        return graph.forward

    def prepare(model):
        if recomputing:
            recompute_blocks(model)
        compile_training(model, backend=as_it_is)

    torch.compiler.reset()
    return prepare


@pytest.mark.parametrize(("trunk", "head", "recomputing", "precision"), CASES)
def test_graphs_have_no_breaks_and_serve_all_steps_with_the_same_losses(trunk, head, recomputing, precision):
    assert {trunk, head} <= {*TRUNKS, *HEADS}
    shape, graphs = small(trunk, head), []
    assert losses(shape, compiled(recomputing, graphs), precision) == losses(shape, lambda _: None, precision)
    assert 2 <= len(graphs) <= MOST_GRAPHS
