"""Error bars of Fréchet distances: they cover what another seed would have given, at this number of images."""

import numpy as np
import pytest

from evaluate.intervals import frechet_error
from evaluate.metrics import precision_recall
from evaluate.metrics.frechet import frechet_distance
from evaluate.metrics.sets import FeatureSet, FeatureSums, Statistics, in_turns
from evaluate.metrics.table import errors, numbers

T_95 = 2.093  # 95 % of Student's t with 19 degrees of freedom, of twenty groups
T_95_TENTHS = 2.262  # the same with 9
DRAWS = 200
COVERED_60 = 0.87  # 95 % of 60 draws, less three standard errors
COVERED = (0.90, 0.99)  # 95 % of 200 draws, three standard errors below; a jackknife is a little too wide


def gaussian(dimension, seed):
    random = np.random.default_rng(seed)
    root = random.standard_normal((dimension, dimension)) / np.sqrt(dimension)
    return random.standard_normal(dimension) * 0.3, root


@pytest.mark.parametrize(("dimension", "count"), [(8, 400), (24, 60), (40, 30)])
def test_interval_covers_the_distance_expected_at_this_number_of_images(dimension, count):
    mean, root = gaussian(dimension, 1)
    real = Statistics(np.zeros(dimension, np.float32), np.eye(dimension))
    distances, errors = [], []
    for seed in range(DRAWS):
        rows = (np.random.default_rng([2, seed]).standard_normal((count, dimension)) @ root.T + mean).astype(np.float32)
        distances.append(frechet_distance(FeatureSums.of(rows).statistics(), real))
        errors.append(frechet_error(rows, real.mean, real.covariance))
    covered = np.abs(np.array(distances) - np.mean(distances)) <= T_95 * np.array(errors)
    assert COVERED[0] <= covered.mean() <= COVERED[1]


def test_matrices_of_images_and_of_features_give_one_error():
    from evaluate.intervals import _traces_of_few, _traces_of_many

    rows = np.random.default_rng(0).standard_normal((50, 12))
    covariance = np.cov(np.random.default_rng(1).standard_normal((40, 12)).T)
    np.testing.assert_allclose(
        _traces_of_few(rows, covariance, 20), _traces_of_many(rows, covariance, 20), rtol=1e-6
    )  # roots of eigenvalues that should be 0


def test_identical_images_have_no_error():
    rows = np.ones((40, 6), np.float32)
    assert frechet_error(rows, np.zeros(6), np.eye(6)) == pytest.approx(0, abs=1e-9)


def of_rows(rows):
    return FeatureSet(FeatureSums.of(rows).statistics(), rows)


def test_errors_of_precision_and_recall_are_the_spread_over_seeds():
    real = of_rows(np.random.default_rng(3).standard_normal((300, 4)).astype(np.float32))
    found, bars = [], []
    for seed in range(60):
        rows = np.random.default_rng([4, seed]).standard_normal((240, 4)).astype(np.float32)
        rows[:, 0] = np.abs(rows[:, 0]) + 0.5  # half of the real ones have no sample near
        found.append(precision_recall.measure(of_rows(rows), real))
        bars.append(precision_recall.errors(of_rows(rows), real, found[-1]))
    for name in ("precision", "recall"):
        values, errors = (np.array([of[name] for of in rows]) for rows in (found, bars))
        covered = np.abs(values - values.mean()) <= T_95_TENTHS * errors
        assert covered.mean() >= COVERED_60, name
        assert errors.mean() == pytest.approx(values.std(), rel=0.25), name  # of 60 a deviation is known to 9 %


def test_bar_of_images_sorted_by_class_is_that_of_images_whose_classes_take_turns():
    random, classes, each = np.random.default_rng(0), 10, 100
    centres = 5 * random.standard_normal((classes, 8))
    turns = (centres[np.arange(classes * each) % classes] + random.standard_normal((classes * each, 8))).astype("f4")
    labels = np.arange(classes * each) % classes
    by_class = np.argsort(labels, kind="stable")
    real = FeatureSet(Statistics(np.zeros(8, np.float32), np.eye(8)), random.standard_normal((500, 8)).astype("f4"))
    for named in (True, False):
        found = []
        for order in (np.arange(len(turns)), by_class):
            of = FeatureSet(
                FeatureSums.of(turns).statistics(), turns[order], labels=labels[order] if named else labels[:0]
            )
            found.append(errors(of, real, numbers(of, real)))
        for name in ("fd", "kid"):
            assert 1 / 3 < found[1][name] / found[0][name] < 3, (name, named)


@pytest.mark.parametrize("seed", range(5))
def test_classes_take_turns_in_the_order_of_error_bars(seed):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), random.integers(1, 9, 6))
    order = in_turns(FeatureSet(Statistics(np.zeros(1), np.eye(1)), np.zeros((len(labels), 1)), labels=labels))
    assert sorted(order) == list(range(len(labels)))
    drawn = labels[order]
    seen = [np.bincount(drawn[:stop], minlength=6) for stop in range(1, len(drawn) + 1)]
    left = [np.bincount(drawn[stop:], minlength=6) for stop in range(1, len(drawn) + 1)]
    assert all(
        counts[rest > 0].max(initial=0) - counts[rest > 0].min(initial=99) <= 1
        for counts, rest in zip(seen, left, strict=True)
    )
