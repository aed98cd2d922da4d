"""References: which images they hold, whatever the workers, and what is kept of them."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate import reference as module
from evaluate.config import LITE0, Features, Reference
from evaluate.features import Extractor
from evaluate.metrics.frechet import FeatureSums
from evaluate.reference import _groups, _Part, make_reference, read_reference
from infra.cluster import Compute, Stage
from infra.errors import InputError
from infra.storage import location
from tests.evaluate.real_images import COUNTS, write_shards
from tokenize_jobs.sources.samples import cropped_images

CONFIG = Reference(features=Features(name=LITE0))


@pytest.mark.parametrize(("images", "quotas"), [(0, [0, 0, 0]), (2, [1, 1]), (7, [3, 2, 2])])
def test_limited_reference_is_spread_over_the_shards(tmp_path, images, quotas):
    groups = _groups(write_shards(tmp_path / "real"), images)
    assert [most for group in groups for _, _, most in group.shards] == quotas


@pytest.mark.parametrize("shards", [1, 63, 64, 65, 1281])
def test_groups_hold_each_shard_once_in_order(tmp_path, shards):
    listing = write_shards(tmp_path / "real")
    groups = _groups(replace(listing, shards=listing.shards[:1] * shards), 0)
    assert [place for group in groups for place, _, _ in group.shards] == list(range(shards))
    assert [group.index for group in groups] == list(range(min(64, shards)))


def part(rows, seed):
    return _Part(FeatureSums.of(rows), np.random.default_rng(seed).random(len(rows)), rows)


def test_kept_features_are_those_of_the_smallest_keys_however_parts_are_added(monkeypatch):
    monkeypatch.setattr(module, "KEPT_FEATURES", 20)
    rows = np.random.default_rng(0).standard_normal((90, 3)).astype(np.float32)
    parts = [part(rows[i : i + 30], i) for i in (0, 30, 60)]
    keys = np.concatenate([p.keys for p in parts])
    expected = rows[np.sort(np.argsort(keys)[:20])]
    one, other = (parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])
    np.testing.assert_array_equal(one.features, expected)
    np.testing.assert_array_equal(other.features, expected)


@pytest.mark.ray
def test_reference_is_the_sums_of_all_usable_images_whatever_the_workers(cluster, tmp_path):
    listing, extractor = write_shards(tmp_path / "real"), Extractor(CONFIG.features)
    found = {}
    for workers in (1, 2):
        out = location(tmp_path / f"out-{workers}")
        compute = Compute(generate=Stage(workers=workers, cpus=1))
        result = make_reference(CONFIG, listing, 16, out, compute)
        assert (result.images, result.kept_features, result.image_size) == (sum(COUNTS), sum(COUNTS), 16)
        found[workers] = read_reference(out)
    np.testing.assert_array_equal(found[1].statistics.covariance, found[2].statistics.covariance)
    np.testing.assert_array_equal(found[1].kept, found[2].kept)
    images = np.concatenate([batch for shard in listing.shards for batch in cropped_images(listing, shard, 16)])
    np.testing.assert_allclose(found[1].kept, extractor(images), rtol=1e-4, atol=1e-4)
    expected = FeatureSums.of(found[1].kept).statistics()
    np.testing.assert_allclose(found[1].statistics.covariance, expected.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.ray
def test_reference_of_no_usable_image_is_refused(cluster, tmp_path):
    listing = write_shards(tmp_path / "real", counts=(0, 0))
    with pytest.raises(InputError, match="fewer than two"):
        make_reference(CONFIG, listing, 16, location(tmp_path / "out"), Compute())


def test_missing_or_damaged_reference_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_reference(location(tmp_path))
