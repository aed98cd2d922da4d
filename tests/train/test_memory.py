"""What a step holds is counted without a device; blocks that are computed again leave the same losses."""

from dataclasses import replace

import pytest
import torch

from infra.errors import InputError
from pipeline.published import imagenet_256_mar_b
from tests.small_model import TRUNKS, randomised, small
from tests.train.test_training import CONFIG, LABELS, MODEL, TOKENS
from train.batches import StepInput, training_draws
from train.ema import EMA
from train.memory import GIB, activation_bytes, counted, recompute_blocks, recomputes
from train.optimizer import Optimization
from train.step import training_step

MIB = 1 << 20
PUBLISHED_MIB, TOKENS_MASKED = 280, 222
"""Saved activations of an image of MAR-B in bf16, dropout's masks left out: counted by another program."""


@pytest.mark.chaos
def test_activations_of_mar_b_are_those_that_another_program_counted():
    model = imagenet_256_mar_b().train.model
    model = replace(model, trunk=replace(model.trunk, dropout=0.0)).on(
        latent_size=16, latent_channels=16, num_classes=1000
    )
    two, four = (activation_bytes(model, images, TOKENS_MASKED, "bf16", recomputing=False) for images in (2, 4))
    assert (four - two) / 2 / MIB == pytest.approx(PUBLISHED_MIB, rel=0.01)


def losses(config, recomputing, shape):
    model = randomised(shape, 4).train()
    ema, optimization, found = EMA(model, 0.9), Optimization(model, config), []
    if recomputing:
        recompute_blocks(model)
    for step in range(4):
        draws = training_draws(shape, 1, step, range(8))
        inputs = StepInput(TOKENS, LABELS, draws, dropout_seed=step)
        found.append(training_step(model, model, ema, optimization, [inputs])["loss"].item())
    return found, {**model.state_dict()}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_training_that_computes_blocks_again_is_the_same_with_dropout_too(trunk):
    chosen = TRUNKS[trunk]
    shape = replace(small(trunk), trunk=replace(chosen, dropout=0.2) if hasattr(chosen, "dropout") else chosen)
    (straight, weights), (again, same) = (losses(CONFIG, recomputing, shape) for recomputing in (False, True))
    assert straight == again
    assert len(set(straight)) == len(straight)
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_memory_decides_on_computing_again_or_refuses_with_the_numbers():
    config = replace(CONFIG, batch_size=64, micro_batch=32)
    whole, lean = (sum(counted(MODEL, config, 32, recomputing=recomputing)) for recomputing in (False, True))
    assert lean < whole
    assert not recomputes(config, MODEL, 2, None)
    assert not recomputes(config, MODEL, 2, 2 * whole)
    assert recomputes(config, MODEL, 2, whole)
    assert recomputes(replace(config, activation_checkpointing="on"), MODEL, 2, 2 * whole)
    with pytest.raises(InputError, match=rf"{lean / GIB:.1f}.*--train.micro-batch"):
        recomputes(config, MODEL, 2, lean - 1)
    with pytest.raises(InputError, match="32 images at once"):
        recomputes(replace(config, activation_checkpointing="off"), MODEL, 2, whole - 1)
    assert not torch.is_autocast_enabled("cuda"), "counting leaves nothing behind"
