"""The likelihood of images: a distribution over all there are, whatever comes next, and told in its own unit."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import Sampling
from evaluate.likelihood import nats_a_token, told
from tests.small_model import ORDER_OF, TRUNKS, randomised, small, small_of_codes, small_of_sub_pixels
from train.card import ModelCard
from train.models.heads import MixtureHead
from train.models.tokens import MultiScaleTokens
from train.models.trunks import NextScaleTrunk

CODES = 3


def every_image(tokens):
    return torch.tensor(list(itertools.product(range(CODES), repeat=tokens))).float()[..., None]


@pytest.mark.parametrize(
    ("generation", "steps"), [("masked", 1), ("masked", 2), *((of, 4) for of in ORDER_OF), ("next-scale", 2)]
)
def test_likelihoods_of_all_images_sum_to_one(generation, steps):
    config, order = replace(small_of_codes(codes=CODES), latent_size=2), ORDER_OF.get(generation, "raster")
    if generation == "next-scale":
        scales = MultiScaleTokens(codebook_size=CODES, channels=2, scales=(1, 2), phis=1)
        config = replace(config, trunk=NextScaleTrunk(width=8, depth=2, heads=2), tokens=scales)
    else:
        config = replace(config, trunk=TRUNKS[generation])
    images = every_image(config.num_tokens)
    orders = torch.from_numpy(np.random.default_rng(0).permutation(config.num_tokens)).expand(len(images), -1)
    labels = torch.ones(len(images), dtype=torch.long)
    nats = nats_a_token(randomised(config), images, labels, orders, Sampling(ar_steps=steps, order=order))
    assert (-nats * config.num_tokens).double().exp().sum().item() == pytest.approx(1, rel=1e-5)
    assert nats.std() > 0


def card(model):
    return ModelCard(
        model=model, latent_scale=1.0, classes=(), tokenizer_kind="", tokenizer_hash="", train_steps=0, images_seen=0,
        ema_decay=0.0,
    )  # fmt: skip


def test_codes_are_told_in_bits_a_code_with_the_standard_error_over_images():
    found = told(card(small_of_codes()), np.log([2.0, 8.0]), "2 held-out images")
    assert found.numbers == {"bits_a_code": pytest.approx(2)}
    assert found.errors == {"bits_a_code": pytest.approx(1)}
    assert told(card(small_of_codes()), np.ones(1), "").errors == {}


def test_latents_are_told_in_bits_a_number_and_nats_a_token():
    found = told(card(replace(small(), head=MixtureHead())), np.full(4, 6 * math.log(2)), "")
    assert found.numbers == {
        "bits_a_latent_number": pytest.approx(2),
        "nats_a_token": pytest.approx(6 * math.log(2)),
    }


def test_sub_pixels_are_told_in_bits_per_dimension():
    found = told(card(small_of_sub_pixels(patch_size=2)), np.full(4, 12 * math.log(256)), "")
    assert found.numbers == {"bits_per_dimension": pytest.approx(8)}
