"""What is kept of generated images: ranges that cover all of them once, whole or not there."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluate.drawn import Drawn, cover, find_ranges, is_shown, merged, range_path, read_range, write_drawn, write_shard
from evaluate.grid import sample_grid
from infra.storage import location


def drawn(span, seed=0):
    random = np.random.default_rng([seed, span.start])
    rows = random.standard_normal((len(span), 6)).astype(np.float32)
    return Drawn(
        rows, rows[:, :3], random.integers(0, 9, len(span)), random.integers(0, 9, (2, 4, 4, 3), dtype=np.uint8)
    )


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12), st.integers(1, 80), st.integers(1, 16))
def test_ranges_cover_every_index_once_and_only_what_is_missing_is_drawn(existing, images, batch_size):
    have = {range(start, start + length) for start, length in existing}
    spans, missing = cover(have, images, batch_size)
    indices = [index for span in spans for index in span]
    assert indices[:images] == list(range(images))
    assert indices == list(range(len(indices)))
    assert set(spans) - set(missing) <= have
    assert not set(missing) & have
    assert all(len(span) <= batch_size and span.stop <= images for span in missing)


def test_more_images_add_only_the_missing_ranges():
    have, _ = cover([], 100, 32)
    _, missing = cover(have, 150, 32)
    assert missing == [range(100, 132), range(132, 150)]
    assert cover(have, 60, 7)[1] == []


@pytest.mark.parametrize("seed", range(40))
def test_file_damaged_anywhere_is_drawn_again_not_merged(tmp_path, seed):
    folder, span = location(tmp_path), range(32, 64)
    write_drawn(range_path(folder, span), drawn(span))
    path = range_path(folder, span)
    content, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    if seed % 2:
        content = content[: random.integers(0, len(content))]
    else:
        position = int(random.integers(0, len(content)))
        content[position] ^= 1 << int(random.integers(0, 8))
    path.write_bytes(bytes(content))
    found = find_ranges(folder).get(span)
    whole = drawn(span)
    assert found is None or all(
        np.array_equal(getattr(found, n), getattr(whole, n)) for n in ("features", "logits", "judged", "shown")
    )


def test_file_of_another_range_is_not_taken(tmp_path):
    folder = location(tmp_path)
    write_drawn(range_path(folder, range(8)), drawn(range(6)))
    assert read_range(folder, range(8)) is None


def test_merged_ranges_keep_their_order(tmp_path):
    folder, spans = location(tmp_path), [range(5), range(5, 9), range(9, 20)]
    for span in reversed(spans):
        write_drawn(range_path(folder, span), drawn(span))
    found = find_ranges(folder)
    whole = merged(found[span] for span in spans).first(18)
    np.testing.assert_array_equal(whole.features, np.concatenate([drawn(span).features for span in spans])[:18])
    assert len(whole.judged) == len(whole.logits) == 18


def test_kept_images_are_a_shard_that_others_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    write_shard(location(tmp_path) / "a.tar", list(images), [4, 5, 6], 5)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [f"{index:07d}.{suffix}" for index in (4, 5, 6) for suffix in ("png", "cls")]
        for number, index in enumerate((4, 5, 6)):
            picture = tar.extractfile(f"{index:07d}.png").read()
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), images[number])
            assert tar.extractfile(f"{index:07d}.cls").read() == str(index % 5).encode()


def test_grid_has_a_row_for_each_class_with_samples_in_the_order_of_their_index():
    def sample(index):
        return np.full((64, 64, 3), index, np.uint8)

    picture = np.asarray(sample_grid(sample, 9, ("a", "b", "c"), 10))
    centres = picture[32::66, 64 + 32 :: 66, 0]
    assert centres.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(("count", "classes", "columns"), [(9, 3, 10), (512, 2, 10), (30, 40, 10), (5000, 1000, 3)])
def test_images_shown_are_all_that_the_grid_asks_for(count, classes, columns):
    asked = []

    def sample(index):
        asked.append(index)
        return np.zeros((8, 8, 3), np.uint8)

    sample_grid(sample, count, tuple(str(i) for i in range(classes)), columns)
    assert set(asked) <= {index for index in range(count) if is_shown(index, classes, columns)}
