"""Two real processes that each have a copy (DDP): compiled, they train as they do uncompiled, in one graph a bucket."""

from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from tests.small_model import randomised, small
from tests.train.test_training import CONFIG, LABELS, TOKENS
from train.batches import StepInput, training_draws
from train.ema import EMA
from train.memory import recompute_blocks
from train.models.autoregressor import compile_training
from train.optimizer import Optimization
from train.sharding import spread
from train.step import training_step

STEPS, WORLD = 3, 2
SHAPE = small()
SHAPE = replace(SHAPE, trunk=replace(SHAPE.trunk, encoder_depth=1, decoder_depth=1), head=replace(SHAPE.head, depth=1))
BUCKET = 20_000
"""Bytes of gradients that are exchanged at once, the first ones too: the small model has several times as many."""
ROUNDING = 1e-5
"""Relative: compiled kernels add in another order."""


def steps(rank, compiled, recomputing, backend):
    """The losses and gradient norms of a worker's steps, of two micro-batches each, and how many graphs were compiled."""
    model = randomised(SHAPE, 4).train()
    ema, optimization, graphs, found = EMA(model, 0.9), Optimization(model, CONFIG), [], []
    if recomputing:
        recompute_blocks(model)
    if compiled:
        compile_training(
            model, backend=lambda *graph: graphs.append(graph) or torch._dynamo.lookup_backend(backend)(*graph)
        )
    network = spread(model, ema.model, torch.device("cpu"), WORLD, cut=False)
    network.bucket_bytes_cap = BUCKET  # what torch cuts the graphs by
    for step in range(STEPS):
        inputs = []
        for first in (4 * rank, 4 * rank + 2):
            rows = slice(first, first + 2)
            draws = training_draws(SHAPE, 1, step, range(first, first + 2))
            inputs.append(StepInput(TOKENS[rows], LABELS[rows], draws, step, 0.5))
        terms = training_step(model, network, ema, optimization, inputs)
        found.append((terms["loss"].item(), terms["grad_norm"].item()))
    return found, len(graphs)


def worker(rank, folder, recomputing, backend):
    torch.set_num_threads(1)
    distributed._DEFAULT_FIRST_BUCKET_BYTES = BUCKET  # a MiB, more than all of the small model: torch would refuse it
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found = [steps(rank, compiled, recomputing, backend) for compiled in (False, True)]
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("recomputing", "backend"),
    [(False, "aot_eager"), pytest.param(True, "inductor", marks=pytest.mark.chaos)],  # which generates code for minutes
)
def test_compiled_copies_train_as_they_do_uncompiled(recomputing, backend, tmp_path):
    torch.multiprocessing.spawn(worker, (tmp_path, recomputing, backend), nprocs=WORLD)
    for rank in range(WORLD):
        (plain, none), (compiled, graphs) = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(plain, compiled, strict=True):
            assert other == pytest.approx(one, rel=ROUNDING)
        assert len(set(plain)) == STEPS
        assert not none
        assert graphs >= 2 * 3, "the trunk of both numbers of tokens in several graphs, and the loss"
    norms = [
        [norm for _, norm in torch.load(tmp_path / f"{rank}.pt", weights_only=True)[1][0]] for rank in range(WORLD)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=ROUNDING), "gradients were exchanged"
