"""Trunk and loss are one graph each, without breaks, and the step is the same; no code is generated here."""

from dataclasses import replace

import pytest
import torch
from torch import distributed

from tests.small_model import HEADS, TRUNKS, randomised, small
from tests.train.test_training import CONFIG, LABELS, TOKENS
from train.batches import StepInput, training_draws
from train.ema import EMA
from train.memory import recompute_blocks
from train.models.autoregressor import compile_training
from train.optimizer import Optimization
from train.sharding import spread
from train.step import training_step

STEPS = 4
MOST_GRAPHS = 6
"""Of trunk and loss: one of each for the first number of visible tokens, none, one, and for all others."""
BUCKET = 30_000
"""Bytes of gradients that are exchanged at once: the small model has several."""
CASES = [
    ("masked", "diffusion", True, "fp32"), ("random-causal", "flow", False, "fp32"),
    ("masked", "diffusion", False, "bf16"), ("masked", "flow", True, "bf16"),
]  # fmt: skip


def losses(shape, prepare, precision="fp32", network_of=lambda model, _: model):
    config = replace(CONFIG, precision=precision)
    model = randomised(shape, 4).train()
    ema, optimization, found = EMA(model, 0.9), Optimization(model, config), []
    prepare(model)
    network = network_of(model, ema.model)
    for step in range(STEPS):
        inputs = StepInput(TOKENS, LABELS, training_draws(shape, 1, step, range(8)), dropout_seed=step)
        found.append(training_step(model, network, ema, optimization, [inputs])["loss"].item())
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


@pytest.mark.parametrize("recomputing", [False, True])
def test_graphs_that_are_cut_where_gradients_are_exchanged_train_as_the_network_does(recomputing, tmp_path):
    def copies(model, averaged):
        network = spread(model, averaged, torch.device("cpu"), 2, cut=False)
        network.bucket_bytes_cap = BUCKET
        return network

    shape, graphs = small(), []
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        found = losses(shape, compiled(recomputing, graphs), network_of=copies)
    finally:
        distributed.destroy_process_group()
    assert found == losses(shape, lambda _: None)
    assert len(graphs) > MOST_GRAPHS, "one graph a bucket, not one for the trunk"
