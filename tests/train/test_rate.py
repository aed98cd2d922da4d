"""Operations of a step, against the sum over its matrices."""

from dataclasses import replace

import pytest
import torch

from tests.small_model import TRUNKS, small
from train.rate import device_rate, operations


def test_another_decoder_block_costs_its_matrices_and_its_attention_forwards_and_twice_backwards():
    trunk = TRUNKS["masked"]
    one, two = (operations(replace(small(), trunk=replace(trunk, decoder_depth=depth))) for depth in (2, 3))
    rows, width = trunk.buffer_size + 16, trunk.decoder_width
    matrices = (4 + 2 * trunk.mlp_ratio) * width**2 * rows
    attention = 2 * rows**2 * width
    assert two - one == pytest.approx(3 * 2 * (matrices + attention))


def test_rate_of_this_processor_is_that_of_real_products():
    assert 1e8 < device_rate(torch.device("cpu"), "fp32") < 1e14
