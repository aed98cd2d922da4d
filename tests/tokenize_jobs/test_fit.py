"""Fitting the small tokenizer: an interrupted fit goes on, on any device, with the same result and one log."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from infra.errors import InputError
from tokenize_jobs.config import FitMultiScaleTokenizer, FitPCATokenizer, FitTokenizer, FitVQTokenizer
from tokenize_jobs.job.fit_job import _some_shards
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.shard import Shard
from tokenize_jobs.tokenizers import Geometry, geometry, load
from tokenize_jobs.tokenizers.added_terms import Added
from tokenize_jobs.tokenizers.adversary import Adversary
from tokenize_jobs.tokenizers.fit import fit, reconstruction_psnr
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokenizers.small_vq import SmallVQ

SIZES = {"stride": 2, "channels": 4, "width": 8, "depth": 1, "train_steps": 6, "batch_size": 4}
CONFIG = FitTokenizer(**SIZES)
VQ = FitVQTokenizer(**SIZES, codebook_size=20)
JUDGED = replace(VQ, adversarial=0.5, adversarial_from=0.2)
MULTI_SCALE = FitMultiScaleTokenizer(**SIZES, codebook_size=20, scales=(1, 2, 4), phis=2)
PCA = FitPCATokenizer(stride=2, components=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


class Killed(Exception):
    """The fit's process ends here."""


def fit_until(out, step, monkeypatch, config=CONFIG):
    """Fit, saving after each second step, until the process is killed in `step`; returns the model and the first step done."""
    monkeypatch.setattr("tokenize_jobs.tokenizers.fit._SAVE_EVERY", 2)
    steps = []

    def report(done, psnr):
        steps.append(done)
        if done == step:
            raise Killed

    try:
        model = fit(config, IMAGES, out, report)
    except Killed:
        model = None
    return model, steps[0]


@pytest.mark.parametrize("config", [CONFIG, VQ, MULTI_SCALE, JUDGED], ids=lambda config: config.kind)
def test_fit_killed_and_run_again_goes_on_and_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    whole, _ = fit_until(tmp_path / "whole", 0, monkeypatch, config)
    assert fit_until(tmp_path / "killed", 5, monkeypatch, config) == (None, 1)
    again, first = fit_until(tmp_path / "killed", 0, monkeypatch, config)
    assert first == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("config", [CONFIG, VQ, MULTI_SCALE, PCA], ids=lambda config: config.kind)
def test_fitted_tokenizer_is_read_back_as_what_its_config_says(config, tmp_path):
    model, read = fit(config, IMAGES, tmp_path, lambda *_: None), load("fitted", str(tmp_path))
    batch = from_uint8(IMAGES)
    assert torch.equal(read.encode(batch), model.encode(batch))
    kind = Geometry(read.stride, read.tokens).of_image(8)
    assert kind == geometry(config).of_image(8)
    assert read.encode(batch).shape[1:] == kind.shape


@pytest.mark.parametrize("kind", [FitVQTokenizer, partial(FitMultiScaleTokenizer, scales=(1, 2), phis=2)])
def test_quantizing_tokenizer_uses_its_codebook_and_learns_pictures(kind, tmp_path):
    rows = np.random.default_rng(1).integers(0, 256, (24, 2, 2, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    config = kind(stride=4, channels=4, width=16, depth=1, codebook_size=32, train_steps=60, batch_size=8)
    model = fit(config, rows, tmp_path, lambda *_: None)
    used = model.encode(from_uint8(rows)).unique()
    assert len(used) > 16
    few = fit(replace(config, train_steps=6), rows, tmp_path / "few", lambda *_: None)
    assert reconstruction_psnr(model, rows) > reconstruction_psnr(few, rows) + 3


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"scales": (1, 2, 8)}, "--tokenizer.scales 1 2 8: .* which is 4 at --tokenize.image-size 8"),
        ({"scales": (2, 1, 4)}, "two or more sides that grow, from 1 or more"),
        ({"scales": (4,), "phis": 1}, "--tokenizer.scales 4: two or more sides"),
        ({"phis": 4}, "--tokenizer.phis 4: from 1 to the number of scales, 3"),
        ({"codebook_decay": 1.5}, "--tokenizer.codebook-decay 1.5 must be from 0 to 1"),
        ({"commitment": -1.0}, "--tokenizer.commitment -1.0 must be 0 or more"),
        ({"lr": float("nan")}, "--tokenizer.lr nan must be 0 or more"),
        ({"codebook_size": 1}, "--tokenizer.codebook-size 1: a codebook has at least 2 vectors"),
    ],
)
def test_scales_that_do_not_fit_are_refused(changed, fault):
    MULTI_SCALE.check(8)
    with pytest.raises(InputError, match=fault):
        replace(MULTI_SCALE, **changed).check(8)


@pytest.mark.gpu
def test_fit_begun_on_a_gpu_goes_on_without_one(tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    fit_until(tmp_path, 3, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, first = fit_until(tmp_path, 0, monkeypatch)
    assert first == 3


def test_adversarys_gradient_at_the_last_layer_is_as_long_as_the_reconstructions():
    torch.manual_seed(0)
    model, adversary, batch = SmallVQ.new(VQ), Adversary(0.1, "cpu"), from_uint8(IMAGES)
    decoded, _ = model.reconstruct(batch, np.random.default_rng(0))
    reconstruction = (decoded - batch).abs().mean()
    term = adversary.term(decoded, reconstruction, model.last_layer)
    rest, judged = (torch.autograd.grad(of, model.last_layer, retain_graph=True)[0] for of in (reconstruction, term))
    torch.testing.assert_close(judged.norm(), rest.norm(), rtol=0.1, atol=0)
    apart = []
    for _ in range(30):
        adversary.learn(batch, decoded)
        apart.append((adversary.network(batch).mean() - adversary.network(decoded).mean()).item())
    assert apart[-1] > apart[0]


def test_perceptual_term_pulls_decoded_pictures_towards_the_features_of_the_images(tmp_path):
    torch.manual_seed(0)
    weights = {f"features.{name}": of for name, of in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(weights, tmp_path / "vgg.pth")
    added = Added.of(replace(VQ, perceptual=2.0, vgg16=str(tmp_path / "vgg.pth")), "cpu")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    decoded = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    last = nn.Parameter(torch.zeros(1))
    term = added.loss(0, images, decoded, decoded.square().mean(), last)
    assert added.loss(0, images, images, decoded.square().mean(), last).item() == 0.0
    nearer = decoded - 1e-2 * torch.autograd.grad(term, decoded)[0].sign()
    assert added.loss(0, images, nearer, decoded.square().mean(), last) < term
    with pytest.raises(InputError, match=r"vgg\.pth.*needs torchvision's vgg16-397923af\.pth"):
        replace(VQ, perceptual=1.0, vgg16=str(tmp_path / "vgg.pth")).check(16)
    with pytest.raises(InputError, match="VGG-16 needs images of 16 px or more"):
        replace(VQ, perceptual=1.0).check(8)


@pytest.mark.parametrize(("shards", "step"), [(1, 1), (1024, 1), (1025, 2), (10_000, 10)])
def test_fit_opens_every_kth_shard_of_many_and_all_of_few(shards, step):
    listing = Listing("webdataset", "/", tuple(Shard(str(n), ()) for n in range(shards)), (), "", 0)
    assert [shard.name for shard in _some_shards(listing).shards] == [str(n) for n in range(0, shards, step)]


def test_width_that_groups_of_channels_do_not_divide_is_refused_before_the_fit():
    with pytest.raises(InputError, match=r"--tokenizer\.width 20"):
        FitTokenizer(width=20).check(32)
