"""Principal components of patches: beside scikit-learn's, and what whitening and damage of the input do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from infra.errors import InputError
from tokenize_jobs.config import FitPCATokenizer
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.fit import fit
from tokenize_jobs.tokenizers.patch_pca import PatchPCA
from tokenize_jobs.tokenizers.pixels import from_uint8

CONFIG = FitPCATokenizer(stride=4, components=7)


def pictures(seed, count=40, side=8):
    """Return smooth pictures uint8 (N, side, side, 3): sums of few waves, with little noise."""
    draws = np.random.default_rng(seed)
    waves = np.cos(
        draws.uniform(0, 1.5, (5, side, 1, 1)) * np.arange(side)[:, None] + draws.uniform(0, 6, (5, 1, 1, 3))
    )
    mixed = np.einsum("nk,khwc->nhwc", draws.normal(0, 40, (count, 5)), waves) + draws.normal(
        110, 4, (count, side, side, 3)
    )
    return mixed.clip(0, 255).astype(np.uint8)


def patches_of(images):
    """Return the 4 x 4 patches (N, 48), channel by channel, of images and of their mirror images, cut out one by one."""
    both = np.concatenate([images, images[:, :, ::-1]]).astype(np.float64) / 127.5 - 1
    return np.array([
        image[top : top + 4, left : left + 4].transpose(2, 0, 1).ravel()
        for image in both for top in range(0, image.shape[0], 4) for left in range(0, image.shape[1], 4)
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("whitening", [0.0, 0.6, 1.0])
def test_components_and_reconstruction_are_those_of_scikit_learn(seed, whitening):
    images, others = pictures(seed), pictures(seed + 100)
    model = PatchPCA.fitted(replace(CONFIG, whitening=whitening), images)
    reference = PCA(7, svd_solver="full").fit(patches_of(images))
    ours = model.components.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs(np.sum(ours * reference.components_, 1)), 1, atol=1e-4)  # a sign is free
    for seen in (images, others):
        decoded = patches_of_batch(model.decode(model.encode(from_uint8(seen))))
        expected = reference.inverse_transform(reference.transform(patches_of_batch(from_uint8(seen)))).clip(-1, 1)
        np.testing.assert_allclose(decoded, expected, atol=2e-4)


def patches_of_batch(images):
    return torch.nn.functional.unfold(images, 4, stride=4).mT.flatten(0, 1).double().numpy()


def test_whitening_sets_how_loud_components_are():
    images = pictures(1)
    both = from_uint8(np.concatenate([images, images[:, :, ::-1]]))
    deviations = {w: PatchPCA.fitted(replace(CONFIG, whitening=w), images).encode(both).std((0, 2, 3), correction=0)
                  for w in (0.0, 0.5, 1.0)}  # fmt: skip
    torch.testing.assert_close(deviations[1.0], torch.ones(7), rtol=1e-3, atol=0)
    torch.testing.assert_close(deviations[0.5], deviations[0.0].sqrt(), rtol=1e-3, atol=0)
    assert deviations[0.0].diff().max() <= 0


@pytest.mark.parametrize("seed", range(10))
def test_order_of_the_pictures_decides_nothing_but_rounding(seed):
    images = pictures(seed, count=600)
    shuffled = images[np.random.default_rng(seed).permutation(len(images))]
    one, other = (PatchPCA.fitted(CONFIG, seen) for seen in (images, shuffled))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("images", [np.full((3, 8, 8, 3), 200, np.uint8), pictures(0, count=1)], ids=["flat", "one"])
def test_pictures_with_nothing_to_tell_stay_finite(images):
    model = PatchPCA.fitted(FitPCATokenizer(stride=4, components=48), images)
    decoded = model.decode(model.encode(from_uint8(images)))
    torch.testing.assert_close(decoded, from_uint8(images), rtol=0, atol=1e-3)


def test_folder_read_back_has_the_same_latents(tmp_path):
    images = pictures(3)
    model = fit(CONFIG, images, tmp_path, lambda *_: None)
    read = load("fit-pca", str(tmp_path))
    assert torch.equal(read.encode(from_uint8(images)), model.encode(from_uint8(images)))
    assert (read.tokens(2), read.stride) == (model.tokens(2), 4)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"components": 49}, "--tokenizer.components 49: a patch of 4 x 4 pixels has 48 components at most"),
        ({"whitening": 1.1}, "--tokenizer.whitening 1.1 must be from 0 to 1"),
        ({"whitening": float("nan")}, "--tokenizer.whitening nan must be from 0 to 1"),
        (
            {"stride": 8, "components": 193},
            "--tokenizer.components 193: a patch of 8 x 8 pixels has 192 components at most",
        ),
        ({"stride": 3}, "--tokenize.image-size 8: the tokenizer's stride 3 does not divide it; take 6 or 9"),
    ],
)
def test_components_that_do_not_fit_are_refused(changed, fault):
    CONFIG.check(8)
    with pytest.raises(InputError, match=fault):
        replace(CONFIG, **changed).check(8)


def test_patches_whose_components_would_take_minutes_are_refused():
    replace(CONFIG, stride=32).check(64)
    with pytest.raises(
        InputError, match=r"--tokenizer\.stride 64: components are found of patches of 32 pixels a side"
    ):
        replace(CONFIG, stride=64).check(64)
