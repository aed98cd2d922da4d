"""A recipe on the user's own images, from a plan to a measured model: who is trained on and who is not."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluate.config import DiffusionSteps, Sampling
from infra.cluster import Compute
from pipeline.plan import Planner
from pipeline.recipes import emoji_32
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.config import FitTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.sources.listing import ImageFiles, scan

SHARDS, IMAGES = 3, 60
PIXELS = PretrainedTokenizer(kind="pixels")


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        members = []
        for index in range(IMAGES):
            png = encoded(Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
            members += [(f"{shard}-{index}.png", png), (f"{shard}-{index}.cls", b"%d" % (index % 2))]
        (tmp_path / "source").mkdir(exist_ok=True)
        write_tar(tmp_path / "source" / f"{shard}.tar", members)
    return tmp_path / "source"


def recipe(folder, share):
    small = emoji_32()
    model = replace(small.train.model, trunk=replace(small.train.model.trunk, encoder_width=32, decoder_width=32))
    sampling = Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=2, last=2))
    return replace(
        small, images=ImageFiles(path=str(folder), num_classes=2, heldout_share=share),
        tokenizer=FitTokenizer(train_steps=4, width=8), tokenize=Tokenize(image_size=16),
        train=replace(small.train, model=model, train_steps=3, log_every=1),
        evaluate=replace(
            small.evaluate, generate=replace(small.evaluate.generate, images=4, sampling=sampling), ceiling=False
        ),
    )  # fmt: skip


def plan(folder, share, out):
    return Planner(recipe(folder, share), Compute(out=str(out))).plan()


def test_rule_that_holds_a_share_back_is_part_of_what_reads_one_side_and_not_of_the_latents(folder, tmp_path):
    some, more, none = (plan(folder, share, tmp_path) for share in (0.02, 0.1, 0))
    for step in ("tokenizer", "reference", "checkpoint", "evaluation"):
        assert len({p.steps[step].fingerprint for p in (some, more, none)}) == 3
    pixels = [
        Planner(replace(recipe(folder, share), tokenizer=PIXELS), Compute(out=str(tmp_path))).plan()
        for share in (0.02, 0)
    ]
    assert pixels[0].path("latents") == pixels[1].path("latents")
    assert pixels[0].path("checkpoint") != pixels[1].path("checkpoint")


@pytest.mark.ray
def test_share_held_back_is_measured_and_neither_fitted_nor_trained_on(cluster, folder, tmp_path, capsys):
    steps = plan(folder, 0.2, tmp_path).until("evaluation")
    made = {step.name: step.build() for step in steps if step.name != "sweep"}
    whole = scan(str(folder), 2)
    held = sum(Heldout(0.2).holds(s.name, f"{s.name}-{i}") for s in whole.shards for i in range(IMAGES))
    total = SHARDS * IMAGES
    assert 10 < held < 60
    assert made["latents"].result.images == total
    assert made["tokenizer"].result.fit_images == total - held
    checkpoint, evaluation = made["checkpoint"].result, made["evaluation"].result
    assert (checkpoint.images, checkpoint.images_held_back) == (total - held, held)
    assert 0 < checkpoint.last["heldout_loss"] < 10
    assert (evaluation.conditions.reference_images, evaluation.heldout_images) == (total - held, held)
    assert "held out a share of 0.2" in capsys.readouterr().out
