"""The head of sub-pixels: the negative log-likelihood of what it samples, each number given those before it alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from tests.small_model import ORDER_OF, STILL, randomised, small, small_of_sub_pixels, step_loss
from train.batches import StepInput, training_draws
from train.config import Train
from train.models.build import build_model
from train.models.heads import CategoricalHead, HeadSampling, NadeHead

DRAWS, GROUPS = 10_000, 4


def random_head(channels):
    torch.manual_seed(0)
    head = NadeHead(width=8).build(channels, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head.requires_grad_(requires_grad=False)


def test_loss_is_ln_256_a_number_at_the_start():
    head = NadeHead(width=8).build(3, 8)
    found = head.loss(torch.randint(256, (2, 5, 3)).float(), torch.randn(2, 5, 8), {})
    assert found.loss.item() == pytest.approx(3 * math.log(256), rel=1e-6)
    assert found.terms["bits_per_dimension"].item() == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("guided", [False, True])
def test_likelihood_is_that_of_the_sampler(guided):
    head, condition = random_head(2), torch.randn(2, 4) / 4
    cfg_scale = 2.0 if guided else 1.0

    def rows(count):  # of the condition, and of the null one
        return condition[:1].expand(count, -1), condition[1:].expand(count, -1) if guided else None

    first = torch.arange(256).repeat(2, 1).T
    logits, _ = head.walk(*rows(256), cfg_scale, lambda _, channel: first[:, channel])
    joint = logits[0, 0].double().softmax(-1)[:, None] * logits[:, 1].double().softmax(-1)
    expected = joint.view(GROUPS, 256 // GROUPS, GROUPS, -1).sum((1, 3))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, DRAWS, 2), dtype=np.float32))
    given, null = rows(DRAWS)
    drawn = head.sample(given, noise, HeadSampling(), null, cfg_scale).long()
    cells = (drawn // (256 // GROUPS) * torch.tensor([GROUPS, 1])).sum(1)
    found = torch.bincount(cells, minlength=GROUPS**2).view(GROUPS, GROUPS) / DRAWS
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / DRAWS).sqrt() + 1e-6).all()
    some = drawn[:20]
    density = head.log_density(some.float(), given[:20], None if null is None else null[:20], cfg_scale)
    torch.testing.assert_close(density.double(), joint[some[:, 0], some[:, 1]].log(), rtol=1e-4, atol=1e-4)
    if not guided:
        loss = head.loss(some[None].float(), given[None, :20], {}).loss
        torch.testing.assert_close(loss, -density.mean())


def test_red_sees_no_colour_green_sees_red_and_blue_both():
    head, condition, tokens = random_head(3), torch.randn(1, 4), torch.tensor([[7, 8, 9]])

    def logits(of):
        return head.walk(condition, None, 1.0, lambda _, channel: of[:, channel])[0][0]

    before = logits(tokens)
    for changed, moved in ((0, [False, True, True]), (1, [False, False, True]), (2, [False, False, False])):
        after = logits(tokens.index_fill(1, torch.tensor(changed), 200))
        assert [not torch.equal(*pair) for pair in zip(before, after, strict=True)] == moved


def test_the_likeliest_of_one_is_the_same_whatever_the_draw():
    head, condition = random_head(3), torch.randn(1, 4).expand(50, -1)
    noise = torch.randn(1, 50, 3)
    assert len(head.sample(condition, noise, HeadSampling(top_k=1)).unique(dim=0)) == 1
    assert len(head.sample(condition, noise, HeadSampling()).unique(dim=0)) > 1


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("generation", list(ORDER_OF))
def test_sub_pixels_are_trained_and_sampled_by_every_trunk(generation, patch_size):
    config = small_of_sub_pixels(generation, patch_size=patch_size)
    model, tokens = build_model(config), config.num_tokens
    pixels = torch.randint(256, (4, tokens, config.token_channels)).float()
    inputs = StepInput(pixels, torch.arange(4), training_draws(config, 0, 0, range(4)))
    loss = step_loss(model, inputs, config=replace(STILL, precision="bf16"))
    assert loss.item() == pytest.approx(config.token_channels * math.log(256), rel=1e-3)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    settings = Sampling(ar_steps=tokens, order=ORDER_OF[generation], cfg_scale=2.0, top_k=99)
    images = sample(randomised(config), torch.arange(3), ImageNoise(0, range(3)), settings)
    assert images.shape == (3, 3, 4, 4)
    assert torch.equal(images, images.round())
    assert 0 <= images.min() < images.max() <= 255


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (replace(small_of_sub_pixels(), head=small().head), "head.kind diffusion: this head draws continuous tokens, but the tokenizer makes sub-pixels"),
        (replace(small_of_sub_pixels(), head=CategoricalHead()), "head.kind categorical: this head draws codes, but the tokenizer makes sub-pixels"),
        (replace(small(), head=NadeHead()), "head.kind nade: this head draws sub-pixels, but the tokenizer makes continuous"),
    ],
)  # fmt: skip
def test_head_of_other_tokens_is_refused(model, told):
    with pytest.raises(InputError, match=f"--train.model.{told}"):
        Train().check(model)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"top_p": 0.0}, {"solver": "ddim"}, {"max_timestep": 950}])
def test_settings_without_sense_are_refused(changes):
    with pytest.raises(InputError):
        Sampling(ar_steps=16, **changes).check(small_of_sub_pixels())
