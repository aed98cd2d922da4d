"""What is measured, part by part: which images each part holds, and sums in one order."""

import numpy as np
import pytest

from evaluate.config import LITE0, Features, Generate, Sampling
from evaluate.grid import sample_grid
from evaluate.measure import Sets
from tokenize_jobs.config import TokenizerFile


@pytest.fixture
def sets(tmp_path):
    return Sets(
        models={"samples": "a", "untrained": "b"}, weights=TokenizerFile("pixels", "", "pixels"),
        generate=Generate(images=10, batch_size=4), sampling=Sampling(), features=Features(name=LITE0), out=str(tmp_path),
    )  # fmt: skip


def drawn(parts, name):
    return [index for part in parts if part["of"] == name for index in range(part["start"], part["stop"])]


def test_parts_hold_each_image_index_once(sets):
    parts = list(sets.parts())
    assert drawn(parts, "samples") == drawn(parts, "untrained") == list(range(10))


def test_grid_has_a_row_for_each_class_with_samples_in_the_order_of_their_index():
    def sample(index):
        return np.full((64, 64, 3), index, np.uint8)

    picture = np.asarray(sample_grid(sample, 9, ("a", "b", "c"), 10))
    centres = picture[32::66, 64 + 32 :: 66, 0]
    assert centres.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
