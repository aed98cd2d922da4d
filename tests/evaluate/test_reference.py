"""References: which images they hold, whatever the workers, and what is kept of them."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate import real_images
from evaluate.config import Reference
from evaluate.decoding import groups_of
from evaluate.extractors import LITE0
from evaluate.features import Extractor
from evaluate.metrics.sets import FeatureSums
from evaluate.networks import Features
from evaluate.real_images import Part
from evaluate.reference import make_reference, read_reference, row_by_row
from infra.cluster import Compute, Stage
from infra.errors import InputError
from infra.storage import location
from tests.evaluate.real_images import COUNTS, write_shards
from tokenize_jobs.sources.samples import cropped_images

CONFIG = Reference(features=Features(name=LITE0))


@pytest.mark.parametrize(("images", "quotas"), [(0, [0, 0, 0]), (2, [1, 1]), (7, [3, 2, 2])])
def test_limited_reference_is_spread_over_the_shards(tmp_path, images, quotas):
    groups = groups_of(write_shards(tmp_path / "real"), images)
    assert [most for group in groups for _, _, most in group.shards] == quotas


@pytest.mark.parametrize("shards", [1, 63, 64, 65, 1281])
def test_groups_hold_each_shard_once_in_order(tmp_path, shards):
    listing = write_shards(tmp_path / "real")
    groups = groups_of(replace(listing, shards=listing.shards[:1] * shards), 0)
    assert [place for group in groups for place, _, _ in group.shards] == list(range(shards))
    assert [group.index for group in groups] == list(range(min(64, shards)))


def part(rows, seed):
    return Part(
        FeatureSums.of(rows),
        np.random.default_rng(seed).random(len(rows)),
        rows,
        np.array([str(row).encode() for row in rows]),
    )


def test_kept_features_are_those_of_the_smallest_keys_however_parts_are_added(monkeypatch):
    monkeypatch.setattr(real_images, "KEPT_FEATURES", 20)
    rows = np.random.default_rng(0).standard_normal((90, 3)).astype(np.float32)
    parts = [part(rows[i : i + 30], i) for i in (0, 30, 60)]
    keys = np.concatenate([p.keys for p in parts])
    expected = rows[np.sort(np.argsort(keys)[:20])]
    one, other = (parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])
    np.testing.assert_array_equal(one.features, expected)
    np.testing.assert_array_equal(other.features, expected)
    assert one.pictures.tolist() == [str(row).encode() for row in expected]


@pytest.mark.parametrize("seed", range(10))
def test_mean_of_parts_in_their_order_is_that_of_all_rows_at_once(seed):
    random = np.random.default_rng(seed)
    rows = random.lognormal(size=(random.integers(2, 3000), 7)).astype(np.float32)
    bounds = np.unique(random.integers(0, len(rows), 5))
    total = None
    for part_rows in np.split(rows, bounds[bounds > 0]):
        total = row_by_row(total, part_rows)
    np.testing.assert_array_equal(total / np.float32(len(rows)), np.mean(rows, axis=0))


@pytest.mark.ray
def test_mean_is_summed_row_by_row_though_few_features_are_kept(cluster, tmp_path, monkeypatch):
    listing = write_shards(tmp_path / "real", counts=(9, 7, 5))
    _, whole = made(tmp_path, CONFIG, listing, workers=2)
    monkeypatch.setattr(real_images, "KEPT_FEATURES", 4)
    result, few = made(tmp_path, CONFIG, listing, workers=1)
    assert (result.images, result.kept_features) == (21, 4)
    np.testing.assert_array_equal(few.set.statistics.mean, np.mean(whole.set.features, axis=0))


@pytest.mark.ray
def test_reference_is_the_sums_of_all_usable_images(cluster, tmp_path):
    listing, extractor = write_shards(tmp_path / "real"), Extractor(CONFIG.features)
    result, real = made(tmp_path, CONFIG, listing, workers=2)
    assert (result.images, result.kept_features, result.image_size) == (sum(COUNTS), sum(COUNTS), 16)
    images = np.concatenate([batch for shard in listing.shards for batch in cropped_images(listing, shard, 16)])
    np.testing.assert_allclose(real.set.features, extractor(images), rtol=1e-4, atol=1e-4)
    expected = FeatureSums.of(real.set.features).statistics()
    np.testing.assert_allclose(real.set.statistics.covariance, expected.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.chaos  # three runs: slow, not violent
def test_reference_is_the_same_whatever_the_workers_and_its_statistics_may_be_given(cluster, tmp_path):
    listing = write_shards(tmp_path / "real")
    (_, one), (_, two) = (made(tmp_path, CONFIG, listing, workers) for workers in (1, 2))
    np.testing.assert_array_equal(one.set.statistics.covariance, two.set.statistics.covariance)
    np.testing.assert_array_equal(one.set.features, two.set.features)
    both, real = made(tmp_path, statistics(tmp_path / "a.npz"), listing, workers=1)
    assert (both.images, both.kept_features, both.lacking) == (0, sum(COUNTS), "")
    np.testing.assert_array_equal(real.set.statistics.covariance, np.eye(1280))
    np.testing.assert_array_equal(real.set.features, one.set.features)


def made(folder, config, listing, workers):
    """The result and the reference of this many workers."""
    out = location(folder / f"out-{workers}-{config.statistics != ''}")
    result = make_reference(config, listing, 16, out, Compute(generate=Stage(workers=workers, cpus=1)))
    return result, read_reference(out)


@pytest.mark.ray
def test_reference_of_no_usable_image_is_refused(cluster, tmp_path):
    listing = write_shards(tmp_path / "real", counts=(0, 0))
    with pytest.raises(InputError, match="fewer than two"):
        make_reference(CONFIG, listing, 16, location(tmp_path / "out"), Compute())


def test_missing_or_damaged_reference_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_reference(location(tmp_path))


def statistics(path, dimension=1280, **changes):
    random = np.random.default_rng(0)
    arrays = {"mu": random.standard_normal(dimension), "sigma": np.eye(dimension), **changes}
    np.savez(path, **arrays)
    return replace(CONFIG, statistics=str(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_in_a_file_are_a_reference_whatever_their_precision(tmp_path, dtype):
    rows = np.random.default_rng(0).standard_normal((1400, 1280)).astype(np.float32)
    own = FeatureSums.of(rows).statistics()
    config = statistics(tmp_path / "a.npz", mu=own.mean.astype(dtype), sigma=own.covariance.astype(dtype))
    result = make_reference(config, None, 256, location(tmp_path / "out"), Compute())
    real = read_reference(location(tmp_path / "out"))
    assert (result.images, result.kept_features, real.about) == (0, 0, result)
    assert "precision" in result.lacking
    assert (real.set.statistics.mean.dtype, real.set.statistics.covariance.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(real.set.statistics.covariance, own.covariance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.zeros(2048)}, "has 1280 features"),
        ({"sigma": np.full((1280, 1280), np.nan)}, "finite"),
        ({"sigma": np.eye(1280, dtype=np.int64)}, "floating-point"),
        ({"mu": np.array([{}] * 1280, dtype=object)}, "no pickles"),
    ],
)
def test_other_files_are_refused_and_pickles_are_not_run(tmp_path, changes, message):
    config = statistics(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=message):
        make_reference(config, None, 256, location(tmp_path / "out"), Compute())


def test_missing_statistics_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        make_reference(replace(CONFIG, statistics="/nowhere.npz"), None, 256, location(tmp_path), Compute())
