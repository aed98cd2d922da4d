"""The categorical head: the cross-entropy of what it samples, filters as published, and codes through every trunk."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from tests.golden_arrays import load
from tests.small_model import ORDER_OF, STILL, randomised, small, small_of_codes, step_loss
from train.batches import StepInput, training_draws
from train.config import Train
from train.models.build import build_model
from train.models.categorical import chosen, filtered
from train.models.heads import CategoricalHead, HeadSampling
from train.models.transformer import put_rows

DRAWS = 40_000


def drawn_shares(head, condition, settings, null=None, cfg_scale=1.0):
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, DRAWS, 1), dtype=np.float32))
    rows = condition.expand(DRAWS, -1)
    codes = head.sample(rows, noise, settings, None if null is None else null.expand(DRAWS, -1), cfg_scale)
    return torch.bincount(codes[:, 0].long(), minlength=head.linear.out_features) / DRAWS


def random_head(codes=9, width=4):
    torch.manual_seed(0)
    head = CategoricalHead().build(codes, width)
    with torch.no_grad():
        head.linear.weight.normal_()
        head.linear.bias.normal_()
    return head.requires_grad_(requires_grad=False)


def assert_shares(found, expected):
    error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((found - expected).abs() <= 4.5 * error).all()


def test_filters_drop_what_the_published_sampler_drops():
    golden = load("filters")
    for run, settings in enumerate(golden.meta["runs"]):
        top_p = settings["top_p"] or 1.0  # there 0 turns it off
        ours = filtered(golden.arrays[f"run{run}.logits"], settings["top_k"], top_p)
        assert torch.equal(ours, golden.arrays[f"run{run}.filtered"])


def test_loss_is_ln_k_at_the_start():
    head = CategoricalHead().build(700, 8)
    codes = torch.randint(700, (3, 5, 1)).float()
    assert head.loss(codes, torch.randn(3, 5, 8), {}).loss.item() == pytest.approx(math.log(700), rel=1e-6)


def test_loss_is_the_negative_log_likelihood_of_the_sampler():
    head, condition = random_head(), torch.randn(1, 4)
    every = torch.arange(9.0)[:, None]
    nll = torch.stack([head.loss(code[None, None], condition[None], {}).loss for code in every])
    assert_shares(drawn_shares(head, condition, HeadSampling()), (-nll).exp())
    torch.testing.assert_close(head.log_density(every, condition.expand(9, -1)), -nll)


@pytest.mark.parametrize(
    "settings", [HeadSampling(temperature=0.5), HeadSampling(top_k=3), HeadSampling(top_p=0.7, temperature=2.0)]
)
def test_temperature_and_filters_draw_from_the_changed_distribution(settings):
    head, condition = random_head(), torch.randn(1, 4)
    logits = head.logits(condition)[0] / settings.temperature
    expected = filtered(logits, settings.top_k, settings.top_p).softmax(-1)
    assert_shares(drawn_shares(head, condition, settings), expected)
    kept = expected > 0
    if settings.top_k:
        assert kept.sum() == settings.top_k
    if settings.top_p < 1:
        shares = logits.softmax(-1)
        least = shares[kept].min()
        assert shares[kept].sum() >= settings.top_p > shares[kept].sum() - least


def test_guidance_extrapolates_logits():
    head, condition, null = random_head(), torch.randn(1, 4), torch.randn(1, 4)
    ours, theirs = head.logits(condition), head.logits(null)
    expected = (theirs + 3 * (ours - theirs)).softmax(-1)[0]
    assert_shares(drawn_shares(head, condition, HeadSampling(), null, 3.0), expected)


def test_code_beyond_the_last_with_probability_is_never_chosen():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
    assert chosen(logits, torch.ones(2)).tolist() == [1, 1]
    assert chosen(logits, torch.zeros(2)).tolist() == [0, 1]


@pytest.mark.parametrize("generation", list(ORDER_OF))
def test_codes_are_trained_and_sampled_by_every_trunk(generation):
    config = small_of_codes(generation)
    model = build_model(config)
    codes = torch.randint(11, (4, 16, 1)).float()
    inputs = StepInput(codes, torch.arange(4), training_draws(config, 0, 0, range(4)))
    loss = step_loss(model, inputs, config=replace(STILL, precision="bf16"))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-3)
    settings = Sampling(ar_steps=16, order=ORDER_OF[generation], cfg_scale=2.0, top_k=5)
    images = sample(randomised(config), torch.arange(3), ImageNoise(0, range(3)), settings)
    assert images.shape == (3, 1, 4, 4)
    assert torch.equal(images, images.round())
    assert 0 <= images.min() < images.max() <= 10


@pytest.mark.parametrize("generation", [of for of in ORDER_OF if of != "masked"])
def test_condition_of_a_code_does_not_depend_on_later_codes(generation):
    config = small_of_codes(generation)
    model, order = randomised(config), training_draws(config, 0, 0, range(2)).order
    codes, vectors = torch.randint(11, (2, 16, 1)).float(), model.class_vectors(torch.tensor([1, 2]), 2)
    changed = put_rows(codes, order[:, 8:], torch.full((2, 8, 1), 3.0))
    before, after = (model.training_conditions(given, vectors, order, 0) for given in (codes, changed))
    first = order[:, :9, None].expand(-1, -1, before.shape[-1])
    assert torch.equal(before.gather(1, first), after.gather(1, first))


@pytest.mark.parametrize("generation", [of for of in ORDER_OF if of != "masked"])
@torch.no_grad()
def test_sampled_codes_have_the_conditions_of_teacher_forcing(generation):
    config = small_of_codes(generation)
    model, seen = randomised(config), []
    original = model.conditions

    def recorded(state, tokens, start, stop):
        seen.append(original(state, tokens, start, stop))
        return seen[-1]

    model.conditions = recorded
    settings = Sampling(ar_steps=16, order=ORDER_OF[generation])
    codes = sample(model, torch.arange(2), ImageNoise(0, range(2)), settings).flatten(1)[..., None]
    order = ImageNoise(0, range(2)).order(16) if ORDER_OF[generation] == "random" else torch.arange(16).expand(2, -1)
    forced = model.training_conditions(codes, model.class_vectors(torch.arange(2), 2), order, 0)
    in_order = forced.gather(1, order[..., None].expand(-1, -1, forced.shape[-1]))
    torch.testing.assert_close(torch.cat(seen, 1), in_order, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (replace(small(), head=CategoricalHead()), "head.kind categorical: this head draws codes, but the tokenizer makes continuous"),
        (replace(small_of_codes(), head=small().head), "head.kind diffusion: this head draws continuous tokens, but the tokenizer makes codes"),
        (replace(small_of_codes(), patch_size=2), "patch-size 2: a token is one code"),
    ],
)  # fmt: skip
def test_head_of_the_other_form_is_refused(model, told):
    with pytest.raises(InputError, match=f"--train.model.{told}"):
        Train().check(model)


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        (small(), {"top_k": 5}, "a diffusion head has no list of codes"),
        (small(kind="flow"), {"top_p": 0.5}, "a flow head has no list of codes"),
        (small_of_codes(), {"temperature": 0.0}, "temperature must be above 0"),
        (small_of_codes(), {"top_p": 0.0}, "top_p above 0"),
        (small_of_codes(), {"max_timestep": 950}, "a categorical head runs no process backwards"),
    ],
)
def test_settings_of_another_head_are_refused(model, settings, told):
    with pytest.raises(InputError, match=told):
        Sampling(ar_steps=4, **settings).check(model)
