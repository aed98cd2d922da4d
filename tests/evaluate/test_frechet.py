"""Fréchet distances: torch-fidelity's own answer is the reference, and the closed form on Gaussians."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics

from evaluate.config import LITE0, Evaluate, Features, Reference
from evaluate.features import Extractor
from evaluate.metrics.frechet import FeatureSums, frechet_distance, title


def random_images(seed: int, count: int) -> np.ndarray:
    """Smooth colour blobs: closer to pictures than white noise."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])


def test_frechet_distance_of_a_set_with_itself_is_zero():
    sums = FeatureSums.of(np.random.default_rng(0).standard_normal((200, 16))).statistics()
    assert frechet_distance(sums, sums) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    # sets with exactly these means and covariances: |m|^2 + sum (s1 - s2)^2
    rows = np.random.default_rng(1).standard_normal((500, 4))
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    first, second = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 0.5, 0.5, 1.0])
    shift = np.array([1.0, -2.0, 0.0, 0.5])
    distance = frechet_distance(
        *(FeatureSums.of(rows).statistics() for rows in (white * first, white * second + shift))
    )
    assert distance == pytest.approx((shift**2).sum() + ((first - second) ** 2).sum(), rel=1e-6)


def test_feature_sums_of_shards_equal_those_of_the_whole():
    rows = np.random.default_rng(2).standard_normal((301, 8)).astype(np.float32) * 5 + 3
    whole, parts = (
        FeatureSums.of(rows),
        FeatureSums.of(rows[:7]) + FeatureSums.of(rows[7:200]) + FeatureSums.of(rows[200:]),
    )
    np.testing.assert_allclose(parts.statistics().covariance, np.cov(rows.T.astype(np.float64)), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(parts.statistics().mean, rows.astype(np.float64).mean(0).astype(np.float32))
    for name in ("count", "total", "outer"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)


def test_distance_of_images_equals_torch_fidelitys_own():
    extractor = Extractor(Features(name=LITE0))
    first, second = random_images(0, 20), random_images(1, 16)
    ours = frechet_distance(*(FeatureSums.of(extractor(images)).statistics() for images in (first, second)))

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()

    theirs = calculate_metrics(
        input1=Images(first), input2=Images(second), fid=True, feature_extractor=LITE0, feature_layer_fid="1280",
        cuda=False, verbose=False, save_cpu_ram=True, batch_size=16, cache=False,
    )  # fmt: skip
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8, abs=1e-6)


def test_extractor_lets_no_convolution_round_to_tf32():
    extractor, allowed = Extractor(Features(name=LITE0)), []
    extractor.network.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    extractor(random_images(3, 2))
    assert allowed == [False]


def test_extractor_features_do_not_depend_on_the_batch():
    extractor, images = Extractor(Features(name=LITE0)), random_images(3, 8)
    together = extractor(images)
    apart = np.concatenate([extractor(images[:3]), extractor(images[3:])])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [
        ("inception-v3-compat", 50_000, "FID"),
        ("inception-v3-compat", 49_999, "FD (inception-v3-compat, 49999)"),
        (LITE0, 50_000, "FD (efficientnet-lite0, 50000)"),
    ],
)
def test_metric_name_is_fid_only_where_it_is_one(name, images, expected):
    assert title(name, images) == expected


def test_evaluate_defaults_are_those_of_fid():
    assert title(Reference().features.name, Evaluate().generate.images) == "FID"
