"""Receptive fields, from gradients, against what the kernels' sizes say."""

import pytest
import torch

from benchmarks.raster import field, gated, plain, priors_picture
from infra.errors import InputError
from infra.storage import location
from tests.pipeline.registered import write_small
from tests.tokenize_jobs.test_tokens import some, stored
from tokenize_jobs.tokens import PlainLatents

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


def test_prior_of_a_store_without_codes_is_refused(tmp_path):
    kind = PlainLatents(4, 3, 2)
    stored(kind, location(tmp_path / "store"), some(kind, 4))
    with pytest.raises(InputError, match=r"store: holds .*; a prior is of codes"):
        priors_picture(write_small(tmp_path / "model"), tmp_path / "store", tmp_path)
