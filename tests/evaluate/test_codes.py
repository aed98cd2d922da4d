"""Codes from a tokenizer to pictures and back: drawing, editing, and tokenizers of other tokens."""

import numpy as np
import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.generate import Generator
from evaluate.sampling.known import Known
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from infra.storage import location
from tests.small_model import randomised, small, small_of_codes
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.tokenizers.small_multiscale import MultiScaleShape, SmallMultiScale
from tokenize_jobs.tokenizers.small_vq import SmallVQ, VQShape
from train.card import ModelCard
from train.checkpoint import write_model
from train.config import Train
from train.models.config import Architecture
from train.models.heads import CategoricalHead
from train.models.trunks import NextScaleTrunk


def written(folder, shape, of_tokenizer=None):
    card = ModelCard(
        model=shape, latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="fitted", tokenizer_hash="h",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    state = randomised(shape).state_dict() | (of_tokenizer or {})
    write_model(location(folder), card, state, state)
    return str(folder)


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(0)
    model = SmallVQ(VQShape(stride=4, channels=4, width=8, depth=1, codebook_size=11))
    model.codebook.vectors.normal_()
    model.write(tmp_path / "tokenizer")
    return TokenizerFile("fitted", str(tmp_path / "tokenizer"))


def test_codes_are_drawn_edited_and_decoded(tmp_path, tokenizer):
    generator = Generator(written(tmp_path / "model", small_of_codes()), tokenizer)
    settings, labels = Sampling(ar_steps=4, top_k=6), torch.arange(3)
    images = generator.draw(labels, range(3), 0, settings)
    assert images.shape == (3, 16, 16, 3)
    assert np.array_equal(images[1:], generator.draw(labels[1:], range(1, 3), 0, settings))
    codes = generator.encode(images[0])
    assert torch.equal(codes, codes.round())
    kept = torch.arange(16) < 8
    known = Known(codes.expand(3, -1, -1, -1), kept)
    edited = sample(generator.model, labels, ImageNoise(1, range(3)), settings, known)
    assert torch.equal(edited[:, :, :2], known.latents[:, :, :2])
    assert not torch.equal(edited[:, :, 2:], known.latents[:, :, 2:])


SCALES = MultiScaleShape(stride=4, channels=4, width=8, depth=1, codebook_size=11, scales=(1, 2, 4), phis=2)


def test_codes_at_several_scales_are_drawn_edited_and_decoded_softly_too(tmp_path):
    torch.manual_seed(0)
    tokenizer = SmallMultiScale(SCALES)
    tokenizer.scales.codebook.vectors.normal_()
    tokenizer.write(tmp_path / "tokenizer")
    architecture = Architecture(trunk=NextScaleTrunk(width=32, depth=2, heads=4), head=CategoricalHead())
    shape = Train(model=architecture).on(tokenizer.tokens(4), 5)
    file = TokenizerFile("fitted", str(tmp_path / "tokenizer"))
    generator = Generator(
        written(
            tmp_path / "model",
            shape,
            {f"z_proj.scales.{name}": of for name, of in tokenizer.scales.state_dict().items() if "counts" not in name},
        ),
        file,
    )
    settings, labels = Sampling(ar_steps=3, order="raster", cfg_scale=2.0, cfg_schedule="steps"), torch.arange(3)
    images = generator.draw(labels, range(3), 0, settings)
    assert images.shape == (3, 16, 16, 3)
    keep = shape.tokens.kept(torch.arange(16).view(4, 4) < 8)
    known = Known(generator.encode(images[0]).expand(3, -1, -1, -1), keep)
    edited = sample(generator.model, labels, ImageNoise(1, range(3)), settings, known)
    assert torch.equal(edited[:, :, keep], known.latents[:, :, keep].float())
    soft = generator.draw(labels, range(3), 0, settings, smooth=True)
    assert soft.shape == images.shape
    assert not np.array_equal(soft, images)
    assert np.array_equal(soft[1:], generator.draw(labels[1:], range(1, 3), 0, settings, smooth=True))
    no_class = generator.draw(None, range(2), 0, settings, known=None, smooth=True)
    assert no_class.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("shape", [small_of_codes(codes=12), small()])
def test_tokenizer_of_other_tokens_is_refused(shape, tmp_path, tokenizer):
    with pytest.raises(InputError, match="makes 4 x 4 codes of 11 of an image, not the tokens of this model"):
        Generator(written(tmp_path / "model", shape), tokenizer)
