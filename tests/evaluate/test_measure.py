"""What is measured, part by part: which images each part holds, and sums in one order."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluate.config import LITE0, Features, Generate
from evaluate.grid import sample_grid
from evaluate.measure import Sets, _in_order, _Measurer
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.sources.samples import cropped_images

COUNTS = (5, 3, 2)


@pytest.fixture
def sets(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for shard, count in enumerate(COUNTS):
        pictures = np.random.default_rng(shard).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
        samples = [(f"{shard}{i}.{s}", c) for i, picture in enumerate(pictures)
                   for s, c in (("png", encoded(Image.fromarray(picture))), ("cls", b"0"))]  # fmt: skip
        write_tar(folder / f"{shard}.tar", [*samples, (f"{shard}bad.png", b"broken"), (f"{shard}bad.cls", b"0")])
    return Sets(
        models={"samples": "a", "untrained": "b"}, real={"reference": scan(str(folder), 1)},
        weights=TokenizerFile("pixels", "", "pixels"), generate=Generate(images=10, batch_size=4),
        features=Features(name=LITE0), image_size=16, most_real=0, out=str(tmp_path),
    )  # fmt: skip


def drawn(parts, name):
    return [index for part in parts if part["of"] == name for index in range(part["start"], part["stop"])]


def test_parts_hold_each_image_index_and_each_shard_once(sets):
    parts = list(sets.parts())
    assert drawn(parts, "samples") == drawn(parts, "untrained") == list(range(10))
    assert drawn(parts, "reference") == [0, 1, 2]


@pytest.mark.parametrize(("most", "quotas"), [(0, [0, 0, 0]), (2, [1, 1]), (7, [3, 2, 2])])
def test_limited_reference_is_spread_over_the_shards(sets, most, quotas):
    parts = replace(sets, most_real=most).parts()
    assert [part["most"] for part in parts if part["of"] == "reference"] == quotas


def test_real_images_are_cropped_bad_ones_left_out_and_at_most_as_many_as_asked_for(sets):
    (source,) = sets.real.values()
    for shard, count in zip(source.shards, COUNTS, strict=True):
        for most, expected in ((0, count), (2, 2), (9, count)):
            images = np.concatenate(list(cropped_images(source, shard, 16, most, batch_size=2)))
            assert images.shape == (expected, 16, 16, 3)


def test_a_part_of_real_images_is_their_features(sets):
    (source,) = sets.real.values()
    worker = _Measurer(sets, 1)
    found = worker({"index": 3, "of": "reference", "start": 1, "stop": 2, "most": 0})
    expected = worker.extractor(np.concatenate(list(cropped_images(source, source.shards[1], 16))))
    assert found["count"] == COUNTS[1]
    assert np.array_equal(np.frombuffer(found["features"], np.float32).reshape(COUNTS[1], -1), expected)


def test_parts_that_come_early_wait_for_their_turn():
    shuffled = [{"index": index} for index in (2, 0, 1, 4, 5, 3)]
    assert [part["index"] for part in _in_order(iter(shuffled))] == list(range(6))


def test_grid_has_a_row_for_each_class_with_samples_in_the_order_of_their_index():
    def sample(index):
        return np.full((64, 64, 3), index, np.uint8)

    picture = np.asarray(sample_grid(sample, 9, ("a", "b", "c"), 10))
    centres = picture[32::66, 64 + 32 :: 66, 0]
    assert centres.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
