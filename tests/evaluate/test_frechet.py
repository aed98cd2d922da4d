"""Fréchet distances: the closed form on Gaussians, and when they are called FID."""

import numpy as np
import pytest

from evaluate.config import Evaluate, Reference
from evaluate.extractors import LITE0
from evaluate.metrics.frechet import frechet_distance, title
from evaluate.metrics.sets import FeatureSums


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
