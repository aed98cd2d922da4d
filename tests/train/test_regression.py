"""What is no sampler of a distribution: the squared error; and the Diffusion Loss of a fixed variance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.fingerprint import fingerprint
from tests.small_model import STILL, randomised, small, step_loss
from train.batches import StepInput, training_draws
from train.models.heads import DiffusionHead, HeadSampling, RegressionHead
from train.models.noise_schedule import respaced_schedule
from train.models.published import to_published


def test_squared_error_draws_the_mean_whatever_the_seed():
    config = replace(small(), head=RegressionHead())
    model, labels = randomised(config), torch.arange(3)
    settings = Sampling(ar_steps=16, order="raster", cfg_scale=2.0)
    first, second = (sample(model, labels, ImageNoise(seed, range(3)), settings) for seed in (0, 1))
    assert torch.equal(first, second)
    inputs = StepInput(torch.randn(4, 16, 3), torch.arange(4), training_draws(config, 0, 0, range(4)))
    assert step_loss(model, inputs, config=replace(STILL, precision="bf16")).dtype == torch.float32


def test_squared_error_is_least_at_the_mean_of_two_modes():
    head = RegressionHead().build(1, 1)
    optimizer, sides = torch.optim.SGD(head.parameters(), lr=0.1), torch.tensor([-1.0, 3.0]).repeat(8)[None, :, None]
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(sides, torch.ones_like(sides), {}).loss.backward()
        optimizer.step()
    drawn = head.sample(torch.ones(4, 1), torch.zeros(0, 4, 1), HeadSampling())
    torch.testing.assert_close(drawn, torch.ones(4, 1), rtol=0, atol=1e-3)  # between the modes, where nothing is


def test_fixed_variance_is_the_noise_error_alone_and_samples_with_the_smallest_variance():
    config = replace(small(), head=DiffusionHead(width=32, depth=2, variance="fixed"))
    model = randomised(config)
    draws = training_draws(config, 0, 0, range(4))
    assert model.head.net.final_linear.out_features == 3
    inputs = StepInput(torch.randn(4, 16, 3), torch.arange(4), draws)
    assert step_loss(model, inputs).isfinite()
    found = model.head.loss(
        torch.randn(2, 5, 3), torch.randn(2, 5, 32), {"uniform": torch.rand(4, 2, 5), "noise": torch.randn(4, 2, 5, 3)}
    )
    assert found.terms == {}
    settings = Sampling(ar_steps=4, diffusion_steps=DiffusionSteps(first=4, last=4), max_timestep=900, cfg_scale=2.0)
    assert sample(model, torch.arange(2), ImageNoise(0, range(2)), settings).isfinite().all()
    with torch.no_grad():  # a head that predicts no noise: what is drawn last is known
        for parameter in model.head.parameters():
            parameter.zero_()
    steps, count = 2, 4000
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((steps, count, 3), dtype=np.float32))
    noise[0] = 0
    with torch.no_grad():
        drawn = model.head.sample(torch.zeros(count, 32), noise, HeadSampling(steps=steps, max_timestep=500))
    schedule = respaced_schedule(steps, 500)
    expected = schedule.posterior_variance[1].sqrt() / schedule.alpha_bar[0].sqrt()
    torch.testing.assert_close(drawn, (noise[1] * expected).float(), rtol=1e-4, atol=1e-6)


def test_fixed_variance_has_no_published_layout_and_learned_keeps_its_identity():
    config = replace(small(), head=DiffusionHead(width=32, depth=2, variance="fixed"))
    with pytest.raises(ValueError, match="of learned variance"):
        to_published({}, config)
    assert fingerprint(DiffusionHead()) != fingerprint(DiffusionHead(variance="fixed"))
