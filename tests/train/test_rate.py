"""Operations of a step, against the sum over its matrices."""

from dataclasses import replace

import pytest
import torch

from tests.small_model import TRUNKS, small, small_of_codes, small_of_sub_pixels
from train.memory import activation_bytes
from train.rate import device_rate, operations


def test_another_decoder_block_costs_its_matrices_and_its_attention_forwards_and_twice_backwards():
    trunk = TRUNKS["masked"]
    one, two = (operations(replace(small(), trunk=replace(trunk, decoder_depth=depth))) for depth in (2, 3))
    rows, width = trunk.buffer_size + 16, trunk.decoder_width
    matrices = (4 + 2 * trunk.mlp_ratio) * width**2 * rows
    attention = 2 * rows**2 * width
    assert two - one == pytest.approx(3 * 2 * (matrices + attention))


def test_another_layer_of_a_pixel_rnn_costs_its_gates_at_each_token():
    trunk = TRUNKS["rnn"]
    one, two = (operations(replace(small("rnn"), trunk=replace(trunk, depth=depth))) for depth in (2, 3))
    weights = 16 * 8 + 1  # four gates of input and state at each token, and the bias of the class
    assert two - one == pytest.approx(3 * 2 * weights * trunk.width**2)


@pytest.mark.parametrize("of", [small, small_of_codes, small_of_sub_pixels])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_operations_and_memory_of_every_trunk_and_token_are_counted(trunk, of):
    model = of(trunk)
    assert operations(model) > 1e6
    assert activation_bytes(model, 2, 8, "bf16", recomputing=False) > 1e5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rate_of_this_processor_is_that_of_real_products(precision):
    assert 1e8 < device_rate(torch.device("cpu"), precision) < 1e14
