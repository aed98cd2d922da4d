"""Sizes below 1 are refused by the name of their flag, before anything runs."""

import random
from dataclasses import fields, replace
from typing import get_args

import pytest

from infra.cluster import Compute
from infra.errors import InputError
from pipeline.plan import Planner
from pipeline.recipes import emoji_32
from tokenize_jobs.config import FitMultiScaleTokenizer, FitPCATokenizer, FitTokenizer, FitVQTokenizer
from train.models.config import Architecture
from train.models.heads import Head, MixtureHead
from train.models.trunks import MaskedTrunk, Trunk

FITTED = (FitTokenizer(), FitPCATokenizer(), FitVQTokenizer(), FitMultiScaleTokenizer())
PARTS = [("trunk", kind()) for kind in get_args(Trunk)] + [("head", kind()) for kind in get_args(Head)]


def sizes(part):
    return [of.name for of in fields(part) if of.type is int and of.name != "seed"]


def cases(parts):
    return [pytest.param(*part, name, id=f"{part[-1].kind}-{name}") for part in parts for name in sizes(part[-1])]


def below_one(name):
    draws = random.Random(name)
    return [0, -1, -draws.randrange(2, 1 << 40)]


def flag(name, value):
    return f"{name.replace('_', '-')} {value} is below 1"


@pytest.mark.parametrize(("of", "part", "name"), cases(PARTS))
def test_size_of_a_trunk_or_head(of, part, name):
    for value in below_one(name):
        changed = Architecture(**{of: replace(part, **{name: value})})
        model = changed.on(latent_size=8, latent_channels=4, num_classes=2)
        with pytest.raises(ValueError, match=f"^{of}.{flag(name, value)}"):
            model.check()
        with pytest.raises(InputError, match=f"^--train.model.{of}.{flag(name, value)}"):
            emoji_32().train.check(model)


@pytest.mark.parametrize(("part", "name"), cases([(config,) for config in FITTED]))
def test_size_of_a_fitted_tokenizer(part, name, tmp_path):
    part.check(32)
    for value in below_one(name):
        recipe = replace(emoji_32(), tokenizer=replace(part, **{name: value}))
        with pytest.raises(InputError, match=f"^--tokenizer.{flag(name, value)}"):
            Planner(recipe, Compute(out=str(tmp_path))).plan()
    assert not list(tmp_path.iterdir())


def test_patches_and_mlps_have_a_size_and_pictures_too(tmp_path):
    for changed, told in (
        (Architecture(patch_size=0), "patch-size 0 is below 1"),
        (Architecture(trunk=MaskedTrunk(mlp_ratio=0.0)), "trunk.mlp-ratio 0.0 leaves the MLP without channels"),
        (Architecture(trunk=MaskedTrunk(mlp_ratio=float("nan"))), "trunk.mlp-ratio nan"),
        (Architecture(head=MixtureHead(components=0)), "head.components 0 is below 1"),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            changed.on(latent_size=8, latent_channels=4, num_classes=2).check()
    recipe = replace(emoji_32(), tokenize=replace(emoji_32().tokenize, image_size=0))
    with pytest.raises(InputError, match=r"^--tokenize\.image-size 0"):
        Planner(recipe, Compute(out=str(tmp_path))).plan()
