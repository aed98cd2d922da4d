"""A checkpoint measured while its training goes on: both its weights, with the same draws each time."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluate import meanwhile
from evaluate.config import DiffusionSteps, Generate, Sampling
from evaluate.meanwhile import Meanwhile
from evaluate.measure import statistics_of
from evaluate.metrics.frechet import frechet_distance
from evaluate.sampling.generate import Generator
from infra.storage import location
from tests.small_model import randomised, small
from tokenize_jobs.config import TokenizerFile
from train.card import ModelCard
from train.checkpoint import write_model

PIXELS = TokenizerFile("pixels", "", "pixels")
SAMPLING = Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=3, last=3))
REAL = SimpleNamespace(
    about=SimpleNamespace(features="mean colours"),
    set=SimpleNamespace(statistics=statistics_of(np.random.default_rng(0).random((40, 3)))),
)


def mean_colours(images):
    return images.mean((1, 2)) / 255


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Model directories: raw weights of seed 1 and averaged ones of seed 2, and both of seed 1."""
    monkeypatch.setattr(meanwhile, "read_reference", lambda _: REAL)
    monkeypatch.setattr(meanwhile, "Extractor", lambda _: mean_colours)
    card = ModelCard(
        model=small(), latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    raw, averaged = (randomised(small(), seed).state_dict() for seed in (1, 2))
    write_model(location(tmp_path / "two"), card, raw, averaged)
    write_model(location(tmp_path / "same"), card, raw, raw)
    return tmp_path


def test_both_weights_are_measured_and_drawn_with_the_same_seeds_each_time(models):
    def measured(model, batch_size):
        generate = Generate(sampling=SAMPLING, images=11, seed=3, batch_size=batch_size)
        found = Meanwhile(generate, PIXELS, "", str(models / f"grids {batch_size}"))(str(models / model), 20)
        return found, [Image.open(path).tobytes() for path in sorted((models / f"grids {batch_size}").iterdir())]

    two, grids = measured("two", 11)
    for suffix, use_ema in (("", True), ("_raw", False)):
        generator = Generator(str(models / "two"), PIXELS, use_ema=use_ema)
        images = generator.draw(generator.labels(range(11)), range(11), 3, SAMPLING)
        expected = frechet_distance(statistics_of(mean_colours(images)), REAL.set.statistics)
        assert two[f"fd{suffix}"] == pytest.approx(expected)
    assert [path.name for path in sorted((models / "grids 11").iterdir())] == [
        "step_00000020.png",
        "step_00000020_raw.png",
    ]
    assert grids[0] != grids[1]
    same, (averaged, raw) = measured("same", 4)
    assert same["fd"] == same["fd_raw"] == pytest.approx(two["fd_raw"])
    assert averaged == raw == grids[1], "whatever the batches"
