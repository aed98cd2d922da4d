"""Images drawn from a model directory that is not as it should be, and numbers of images that are all alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate.config import DiffusionSteps, Generate, Sampling
from evaluate.measure import statistics_of
from evaluate.metrics.sets import FeatureSet
from evaluate.metrics.table import errors, numbers
from evaluate.reconstruct import _Measurer
from evaluate.sampling.generate import Generator
from infra.errors import InputError
from infra.storage import location
from tests.small_model import randomised, small
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.tokens import plain_grid
from train.card import EMA_WEIGHTS, WEIGHTS, ModelCard, content_digest
from train.checkpoint import write_model

PIXELS = TokenizerFile("pixels")
SAMPLING = Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=2, last=2))


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", randomised(small()).state_dict())


def write(path, state):
    card = ModelCard(
        model=small(), latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    write_model(location(path), card, state, state)
    return location(path)


def test_images_that_are_no_numbers_are_refused_and_not_shown_black(tmp_path):
    state = randomised(small()).state_dict()
    name = next(name for name in state if name.startswith("head") and name.endswith("bias"))
    state[name][0] = float("nan")
    generator = Generator(str(write(tmp_path / "model", state)), PIXELS)
    with pytest.raises(InputError, match="2 of 2 generated images are not finite numbers"):
        generator.draw(torch.tensor([0, 1]), range(2), 0, SAMPLING)


def test_model_without_averaged_weights_says_so_and_is_drawn_from_its_raw_ones(folder):
    both = content_digest(folder)
    (folder / EMA_WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"ema\.safetensors: this model has no averaged weights; .*no-use-ema"):
        Generator(str(folder), PIXELS)
    drawn = Generator(str(folder), PIXELS, use_ema=False).draw(torch.tensor([0]), range(1), 0, SAMPLING)
    assert drawn.shape[0] == 1
    assert content_digest(folder) != both
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=WEIGHTS):
        content_digest(folder)


def test_reconstructions_that_are_no_numbers_are_refused():
    class Broken:
        stride, tokens = 1, staticmethod(plain_grid(3))

        def encode(self, images):
            return images

        def decode(self, latents):
            return latents / 0 * 0

    measurer = object.__new__(_Measurer)
    measurer.tokenizer, measurer.device = Broken(), torch.device("cpu")
    measurer.work = SimpleNamespace(weights=TokenizerFile("fitted", "/t"))
    with pytest.raises(InputError, match="tokenizer /t: reconstructions are not finite numbers"):
        measurer.reconstructed(np.full((2, 8, 8, 3), 7, np.uint8))


@pytest.mark.parametrize("flags", [{"images": 0}, {"images": 1}, {"batch_size": 0}], ids=str)
def test_no_images_and_none_at_once_are_refused(flags):
    with pytest.raises(InputError, match="must be at least"):
        Generate(**flags).check()


def test_labels_of_50_000_images_are_fifty_of_each_of_a_thousand_classes():
    generator = object.__new__(Generator)
    generator.card = SimpleNamespace(model=SimpleNamespace(num_classes=1000))
    labels = torch.cat([generator.labels(range(start, min(start + 64, 50_000))) for start in range(0, 50_000, 64)])
    assert (labels.bincount(minlength=1000) == 50).all()


def test_images_all_alike_have_finite_numbers_far_from_real_ones():
    random = np.random.default_rng(0)
    same, real = np.ones((50, 8), np.float32), random.standard_normal((60, 8)).astype(np.float32)
    alike, other = (FeatureSet(statistics_of(of), of) for of in (same, real))
    found = numbers(alike, other)
    # the distance to a point: squared distance of the means, and the trace of the real covariance
    mean, covariance = real.mean(0, dtype=np.float64), np.cov(real, rowvar=False, dtype=np.float64)
    np.testing.assert_allclose(found["fd"], np.square(1 - mean).sum() + np.trace(covariance), rtol=1e-5)
    assert found["recall"] == 0
    assert all(np.isfinite(list({**found, **errors(alike, other, found)}.values())))
