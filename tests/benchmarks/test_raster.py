"""Receptive fields, from gradients, against what the kernels' sizes say."""

import pytest
import torch

from benchmarks.raster import field, gated, plain

SIDE = 9


@pytest.mark.parametrize(("kernel", "depth"), [(3, 1), (3, 3), (3, 8), (5, 2)])
@pytest.mark.parametrize("place", [(4, 4), (6, 1), (8, 8)])
def test_plain_stack_has_its_blind_spot_and_the_gated_one_has_none(kernel, depth, place):
    row, column, reach = *place, kernel // 2
    seen = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for i in range(SIDE):
        for j in range(SIDE):
            up, right = row - i, j - column
            wedge = 0 <= up <= depth * reach and -depth * reach <= right <= reach * min(up, depth)
            seen[0, i, j] = wedge and (up > 0 or right < 0)
            above = 0 < up <= 1 + depth * reach and abs(right) <= depth * reach
            seen[1, i, j] = above or (up == 0 and -depth * reach <= right < 0)
    assert torch.equal(field(plain(depth, kernel), SIDE, place), seen[0])
    assert torch.equal(field(gated(depth, kernel), SIDE, place), seen[1])
