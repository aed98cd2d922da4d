"""Distances of images from their copies: the formulas, and torch-fidelity's own network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch_fidelity import sample_similarity_lpips as theirs
from torchvision.models.vgg import cfgs, make_layers

from evaluate.metrics.pairs import BEST_PSNR, lpips, psnr, ssim
from infra.errors import InputError
from tests.evaluate.random_images import random_images
from tokenize_jobs.tokenizers.lpips import LPIPS

LAYERS = (64, 128, 256, 512, 512)


def pairs(count=2, size=32, noise=12.0):
    images = random_images(0, count)[:, :size, :size]
    noisy = images + np.random.default_rng(1).normal(0, noise, images.shape)
    return images, noisy.clip(0, 255).round().astype(np.uint8)


def test_psnr_is_that_of_the_mean_square_error():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    copies = images.copy()
    copies[0] += 5
    np.testing.assert_allclose(psnr(images, copies), [20 * np.log10(255 / 5), BEST_PSNR])
    assert psnr(copies, images)[0] == psnr(images, copies)[0]


def test_ssim_is_the_formula_at_every_window():
    images, copies = pairs(1, 14)
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for channel in range(3):
        for top in range(4):
            for left in range(4):
                x, y = (of[0, top : top + 11, left : left + 11, channel].astype(float) for of in (images, copies))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                both = (window * (x - mx) * (y - my)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                found.append((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(images, copies)[0] == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim(images, images)[0] == pytest.approx(1)
    assert np.isnan(ssim(images[:, :10, :10], copies[:, :10, :10])).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files in the published layouts, with random weights."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    network = SimpleNamespace(features=make_layers(cfgs["D"]))
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(LAYERS)}
    torch.save(linear, folder / "lpips.pth")
    torch.save({f"features.{name}": of for name, of in network.features.state_dict().items()}, folder / "vgg.pth")
    return folder / "lpips.pth", folder / "vgg.pth", network, linear


def test_lpips_is_torch_fidelitys(files, monkeypatch):
    layers, vgg, network, linear = files
    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: network)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: linear)
    reference = theirs.SampleSimilarityLPIPS("lpips-vgg16")
    images, copies = pairs()
    expected = reference(*(torch.from_numpy(of).permute(0, 3, 1, 2) for of in (images, copies)))
    np.testing.assert_allclose(lpips(LPIPS(layers, vgg), images, copies), expected.flatten().numpy(), rtol=1e-4)


def test_other_weights_are_refused_by_name(files):
    _, vgg, *_ = files
    with pytest.raises(InputError, match="not its weights"):
        LPIPS(vgg, vgg)
