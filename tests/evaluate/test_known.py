"""Which tokens two pictures keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluate.sampling.known import known_from_pictures, touched
from infra.errors import InputError
from tests.small_model import small


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_token_is_touched_where_any_of_its_pixels_is(tokens, pixels, seed):
    mask = np.random.default_rng(seed).random((tokens * pixels, tokens * pixels)) < 0.1
    found = touched(mask, tokens)
    for row in range(tokens):
        for column in range(tokens):
            tile = mask[row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels]
            assert found[row, column].item() == tile.any()


def test_black_tokens_are_kept_with_the_latents_of_the_image(tmp_path):
    picture, mask = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), np.zeros((8, 8), np.uint8)
    mask[0, 7] = 255  # one pixel of the last token of the first row
    for name, pixels in (("image", picture), ("mask", mask), ("small", mask[:7])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    seen = []

    def encode(image):
        seen.append(image)
        return torch.zeros(1, 3, 4, 4)

    known = known_from_pictures(tmp_path / "image.png", tmp_path / "mask.png", small(), 2, encode)
    known.check(small())
    assert np.array_equal(seen[0], picture)
    assert (~known.keep).nonzero().flatten().tolist() == [3]
    with pytest.raises(InputError, match=r"small\.png"):
        known_from_pictures(tmp_path / "image.png", tmp_path / "small.png", small(), 2, encode)
