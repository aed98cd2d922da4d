"""The Gaussian-mixture head: arrays of the published GIVT code, and the distribution it samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from evaluate.config import Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from tests.golden_arrays import load
from tests.small_model import STILL, small, step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model
from train.models.heads import HeadSampling, MixtureHead
from train.models.mixture import Mixture, guided, square_plus

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64; the published code itself repeats to 1.4e-14


@pytest.fixture(scope="module")
def golden():
    return load("gmm_head").arrays


def test_mixture_is_read_as_published(golden):
    mixture = Mixture.of(golden["params"].double(), 16)
    torch.testing.assert_close(mixture.log_weights, golden["mixture_logits"], **EXACT)
    torch.testing.assert_close(mixture.means, golden["locs"], **EXACT)
    torch.testing.assert_close(mixture.scales, golden["scales"], **EXACT)


def test_negative_log_likelihood_and_its_gradient_equal_the_published_ones(golden):
    params = golden["params"].double().requires_grad_()
    mixture = Mixture.of(params, 16)
    nll = -mixture.log_density(golden["tokens"].double())
    torch.testing.assert_close(nll, golden["nll"], **EXACT)
    nll.mean().backward()
    torch.testing.assert_close(params.grad, golden["grad.params"], **EXACT)
    single = -Mixture.of(golden["params"], 16).log_density(golden["tokens"])
    torch.testing.assert_close(single, golden["nll_float32"], rtol=1e-6, atol=0)
    unconditional = Mixture.of(golden["uncond_params"].double(), 16)
    torch.testing.assert_close(-unconditional.log_density(golden["tokens"].double()), golden["uncond_nll"], **EXACT)
    colder = replace(mixture, scales=0.95 * mixture.scales)
    torch.testing.assert_close(-colder.log_density(golden["tokens"].double()), golden["nll_scale095"], **EXACT)
    sharper = replace(mixture, log_weights=(2 * mixture.log_weights).log_softmax(-1))
    torch.testing.assert_close(-sharper.log_density(golden["tokens"].double()), golden["nll_probs_t2"], **EXACT)


def test_one_mixture_a_channel_has_the_published_likelihoods(golden):
    """Each channel a token of one number; that layer has all logits first, then all means, then all scales."""
    logits, means, scales = golden["per_channel.params"].double().unflatten(-1, (3, 16, 16)).unbind(-3)
    channels = torch.cat([logits, torch.stack([means, scales], -1).flatten(-2)], -1)
    nll = -Mixture.of(channels, 16).log_density(golden["per_channel.tokens"].double()[..., None])
    torch.testing.assert_close(nll, golden["per_channel.nll"], **EXACT)


def test_likelihood_by_the_first_versions_scales_is_the_published_one(golden):
    """Which cut most scales at the floor: likelihoods far out in the tails."""
    params = golden["params"].double()
    raw = params[..., 16:].unflatten(-1, (16, 2, 16))[..., 1, :]
    scales = [(of + (of.square() + 4).sqrt() / 2).clamp(min=1e-6) for of in (raw, golden["squareplus.raw"])]
    torch.testing.assert_close(scales[1], golden["squareplus_old.float64"], **EXACT)
    nll = -replace(Mixture.of(params, 16), scales=scales[0]).log_density(golden["tokens"].double())
    torch.testing.assert_close(nll, golden["nll_old_squareplus"], **EXACT)


def test_square_plus_keeps_its_digits_far_below_zero(golden):
    raw, recorded = golden["squareplus.raw"], golden["squareplus.float64"]
    held = raw > -1e4  # below, the recorded form cancels in float64 too
    torch.testing.assert_close(square_plus(raw[held].float()), recorded[held].float(), rtol=1e-6, atol=0)
    kept = raw >= -10  # below, the published form in float32 loses digits
    torch.testing.assert_close(square_plus(raw[kept].float()), golden["squareplus.float32"][kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        square_plus(-(10.0 ** torch.arange(4, 7))), 10.0 ** -torch.arange(4, 7), rtol=1e-6, atol=0
    )
    assert torch.autograd.functional.jacobian(square_plus, torch.zeros(())) == 0.5


def test_guided_density_is_the_published_one_up_to_a_factor(golden):
    w, tokens, index = 0.4, golden["tokens"].double(), golden["cfg.component"]
    pair = [Mixture.of(golden[name].double(), 16).component(index) for name in ("params", "uncond_params")]

    def published(x):
        return (1 + w) * Normal(*pair[0]).log_prob(x) - w * Normal(*pair[1]).log_prob(x)

    torch.testing.assert_close(published(tokens), golden["cfg.log_density"], **EXACT)
    proposal = Normal(pair[0][0], 2 * torch.maximum(pair[0][1], pair[1][1]))
    torch.testing.assert_close(proposal.scale, golden["cfg.proposal_scale"], **EXACT)
    around = torch.linspace(-10, 10, 1001, dtype=torch.float64).view(-1, 1, 1, 1)
    highest = (published(pair[0][0] + around).amax(0) - proposal.log_prob(pair[0][0])).exp()
    torch.testing.assert_close(highest, golden["cfg.fac"], **EXACT)
    mean, scale = guided(*pair, 1 + w)
    factors = torch.stack([Normal(mean, scale).log_prob(tokens + d) - published(tokens + d) for d in (-1.0, 0.0, 2.0)])
    spread = factors.amax(0) - factors.amin(0)
    assert spread.max() < 1e-9 * factors.abs().max()
    narrow = pair[0][0], pair[0][1] * 0.1
    for ours, theirs in zip(guided(pair[0], narrow, 1 + w), pair[0], strict=True):  # no such density: unguided
        assert torch.equal(ours, theirs)


def test_samples_follow_the_density():
    torch.manual_seed(0)
    head = MixtureHead(components=3).build(1, 4)
    condition = torch.randn(1, 4).expand(20_000, -1)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 20_000, 1), dtype=np.float32))
    with torch.no_grad():
        drawn = head.sample(condition, noise, HeadSampling()).flatten().double()
        grid = torch.linspace(-40, 40, 80_001)
        density = head.mixture(condition[:1]).log_density(grid[:, None]).exp().double()
    cumulative = (density * (grid[1] - grid[0])).cumsum(0)
    assert abs(cumulative[-1] - 1) < 1e-3
    expected = np.interp(drawn.sort().values.numpy(), grid.numpy(), cumulative.numpy())
    assert np.abs(expected - np.arange(20_000) / 20_000).max() < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov at 1 %


def test_likelihood_learns_a_known_distribution():
    torch.manual_seed(0)
    head = MixtureHead(components=4).build(2, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        side = torch.randint(0, 2, (1, 512, 1), generator=generator) * 2.0 - 1
        target = side + 0.25 * torch.randn(1, 512, 2, generator=generator)
        optimizer.zero_grad()
        loss = head.loss(target, torch.ones(1, 512, 4), {}).loss
        loss.backward()
        optimizer.step()
    entropy = np.log(2) + 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.25))  # of two separate Gaussians
    assert abs(loss.item() - entropy) < 0.1


def test_model_with_a_mixture_head_trains_and_samples_in_bf16():
    config = replace(small(), head=MixtureHead(components=4))
    model, draws = build_model(config), training_draws(config, 0, 0, range(4))
    inputs = StepInput(torch.randn(4, 16, 3), torch.arange(4), draws)
    loss = step_loss(model, inputs, config=replace(STILL, precision="bf16"))
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.head.parameters())
    settings = Sampling(ar_steps=4, cfg_scale=2.0, temperature=0.9, precision="bf16")
    assert sample(model.eval(), torch.arange(3), ImageNoise(0, range(3)), settings).isfinite().all()
    with pytest.raises(InputError, match="no max_timestep"):
        sample(model, torch.arange(3), ImageNoise(0, range(3)), replace(settings, max_timestep=950))
