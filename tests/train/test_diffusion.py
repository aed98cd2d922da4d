"""The diffusion process against its equations in float64."""

import math

import numpy as np
import pytest
import torch

from tests.small_model import small
from train.models.build import build_model
from train.models.diffusion import TrainingTables, q_sample
from train.models.noise_schedule import cosine_schedule, respaced_schedule


def test_q_sample_equals_the_equation_in_float64():
    betas = [
        min(
            1
            - math.cos(((i + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
            / math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2,
            0.999,
        )
        for i in range(1000)
    ]
    alpha_bar = np.cumprod(1 - np.array(betas))
    t = np.array([0, 1, 500, 998, 999])
    x0, noise = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = np.sqrt(alpha_bar[t])[:, None] * x0 + np.sqrt(1 - alpha_bar[t])[:, None] * noise
    ours = q_sample(torch.tensor(x0).float(), torch.tensor(noise).float(), torch.tensor(t), TrainingTables())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-6, atol=1e-6)


def test_posterior_equals_bayes_rule_in_float64():
    schedule = respaced_schedule(50)
    alpha_bar = schedule.alpha_bar.numpy()
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    alpha = alpha_bar / previous
    i = np.arange(1, 50)
    # precision of x_{t-1} given x_0 (prior) and given x_t (likelihood)
    precision = 1 / (1 - previous[i]) + alpha[i] / (1 - alpha[i])
    np.testing.assert_allclose(schedule.posterior_variance.numpy()[i], 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(
        schedule.posterior_mean_coef_x0.numpy()[i], np.sqrt(previous[i]) / (1 - previous[i]) / precision, rtol=1e-9
    )
    np.testing.assert_allclose(
        schedule.posterior_mean_coef_xt.numpy()[i], np.sqrt(alpha[i]) / (1 - alpha[i]) / precision, rtol=1e-9
    )


def test_schedule_first_asked_for_while_building_on_another_device_holds_numbers():
    cosine_schedule.cache_clear()
    respaced_schedule.cache_clear()
    with torch.device("meta"):
        build_model(small())
        respaced_schedule(10)
    assert cosine_schedule().alpha_bar[0].item() == pytest.approx(0.999958715775178)
    assert respaced_schedule(10).betas[0].item() == pytest.approx(4.128422482e-05)


def test_schedule_ends_in_noise():
    assert cosine_schedule().alpha_bar[-1].item() == pytest.approx(2.4287669070e-09, rel=1e-9)
