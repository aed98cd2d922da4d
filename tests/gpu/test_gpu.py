"""A GPU computes what a processor does, to float rounding. Needs torch, numpy and pytest alone: `make gpu` runs it so.

The same code runs from processor to processor wherever the suite runs, so that it is known to work.
"""

import numpy as np
import pytest
import torch

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from tests.small_model import HEADS, ORDER_OF, TRUNKS, randomised, small, step_loss
from train.batches import StepInput, training_draws

LOSS, SAMPLES = 1e-4, 1e-2
"""Of the largest value: a GPU adds in another order, and from t = 999 on a rounding is amplified."""
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def inputs_of(model, batch=4):
    draws = np.random.default_rng(0)
    tokens = torch.from_numpy(draws.standard_normal((batch, model.num_tokens, model.token_channels), np.float32))
    return StepInput(tokens, torch.arange(batch) % model.num_classes, training_draws(model, 1, 0, range(batch)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("generation", TRUNKS)
def test_loss_and_gradients_of_a_step_are_a_processors(generation, kind, device):
    config = small(generation, kind)
    here, there = randomised(config), randomised(config).to(device)
    inputs = inputs_of(config)
    losses = [step_loss(model, inputs.to(next(model.parameters()).device)).cpu() for model in (here, there)]
    torch.testing.assert_close(*losses, rtol=LOSS, atol=LOSS)
    for mine, other in zip(here.parameters(), there.parameters(), strict=True):
        scale = mine.grad.abs().max().clamp(min=1e-6)
        assert ((mine.grad - other.grad.cpu()).abs().max() / scale) < 100 * LOSS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("generation", TRUNKS)
def test_samples_are_a_processors(generation, device):
    config = small(generation)
    steps = 4 if generation == "masked" else config.num_tokens
    settings = Sampling(
        ar_steps=steps,
        diffusion_steps=DiffusionSteps(first=5, last=5),
        cfg_scale=2.0,
        max_timestep=950,
        order=ORDER_OF[generation],
    )
    labels = torch.tensor([0, 1, 4])
    drawn = [
        sample(randomised(config).to(where), labels, ImageNoise(0, range(3)), settings).cpu()
        for where in ("cpu", device)
    ]
    assert ((drawn[0] - drawn[1]).abs().max() / drawn[0].abs().max()) < SAMPLES


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", HEADS)
def test_replayed_samples_are_those_of_plain_steps(kind, precision):
    """Of batches of other sizes in turns, on the same graphs and on others."""
    settings = Sampling(
        ar_steps=4, diffusion_steps=DiffusionSteps(first=5, last=3), cfg_scale=2.0, max_timestep=None,
        precision=precision,
    )  # fmt: skip
    plain, replayed = (randomised(small(kind=kind)).cuda() for _ in range(2))
    replayed.head.compile_sampling()
    for batch in (3, 40, 3):
        labels = torch.arange(batch) % 5
        expected, found = (sample(model, labels, ImageNoise(0, range(batch)), settings) for model in (plain, replayed))
        scale = expected.abs().max()
        assert ((expected - found).abs().max() / scale) < (SAMPLES if precision == "fp32" else 20 * SAMPLES)
