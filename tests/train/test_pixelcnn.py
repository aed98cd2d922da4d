"""Gated PixelCNN: gradients say what each place sees, which is its whole raster prefix and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.small_model import randomised, small_of_codes, step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model
from train.models.config import Architecture
from train.models.heads import CategoricalHead, MixtureHead
from train.models.pixelcnn import GatedLayer, Stacks
from train.models.tokens import CodeTokens
from train.models.trunks import ConvolutionalTrunk

WIDTH = 4


def stack(depth, kernel):
    torch.manual_seed(depth)
    layers = [GatedLayer(WIDTH, kernel, first=i == 0, last=i == depth - 1) for i in range(depth)]
    return nn.ModuleList(layers).double()


def run(layers, x, class_vectors=None):
    """Both stacks after all layers; the horizontal one is what the last layer found."""
    stacks = Stacks(x, x, torch.zeros_like(x))
    for layer in layers:
        stacks = layer(
            stacks._replace(skip=torch.zeros_like(x)),
            torch.zeros(len(x), WIDTH).double() if class_vectors is None else class_vectors,
        )
    return stacks.vertical, stacks.skip


def seen(output, x, row, column):
    """The places (H, W) of x that output at (row, column) depends on."""
    (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), x, retain_graph=True)
    return gradient[0].abs().sum(0) != 0


def box(side, rows, columns):
    places = torch.zeros(side, side, dtype=torch.bool)
    for row in rows:
        for column in columns:
            if 0 <= row < side and 0 <= column < side:
                places[row, column] = True
    return places


@pytest.mark.parametrize(("kernel", "depth"), [(3, 1), (3, 2), (3, 4), (5, 1), (5, 2), (7, 2)])
def test_stacks_see_exactly_what_they_must(kernel, depth):
    side, reach = 9, depth * (kernel // 2)
    x = torch.randn(1, WIDTH, side, side, dtype=torch.float64, requires_grad=True)
    vertical, horizontal = run(stack(depth, kernel), x)
    for i, j in ((0, 0), (4, 4), (8, 8), (3, 0), (5, 8)):
        around = range(j - reach, j + reach + 1)
        assert torch.equal(seen(vertical, x, i, j), box(side, range(i - reach, i + 1), around))
        above, before = box(side, range(i - 1 - reach, i), around), box(side, [i], range(j - reach, j))
        assert torch.equal(seen(horizontal, x, i, j), above | before)


def test_last_place_sees_all_others_from_depth_seven_on_and_not_before():
    x = torch.randn(1, WIDTH, 8, 8, dtype=torch.float64, requires_grad=True)
    prefix = torch.arange(64).view(8, 8) < 63
    assert not torch.equal(seen(run(stack(6, 3), x)[1], x, 7, 7), prefix)
    layers = stack(7, 3)
    _, horizontal = run(layers, x)
    for place in (63, 8, 37):
        assert torch.equal(seen(horizontal, x, place // 8, place % 8), torch.arange(64).view(8, 8) < place)


def test_upper_right_is_no_blind_spot():
    x = torch.randn(1, WIDTH, 6, 6, dtype=torch.float64, requires_grad=True)
    assert seen(run(stack(2, 3), x)[1], x, 4, 2)[3, 4]  # a plain stack of 3x3 kernels never sees it


def test_vertical_stack_does_not_depend_on_the_horizontal_one():
    layers, x = stack(3, 3), torch.randn(2, WIDTH, 5, 5, dtype=torch.float64)
    before, _ = run(layers, x)
    with torch.no_grad():
        for layer in layers:
            for part in (layer.before, layer.link, layer.skip):
                part.weight.normal_()
    after, _ = run(layers, x)
    assert torch.equal(before, after)


def test_class_reaches_every_place_of_both_stacks_and_leaves_what_they_see():
    layers, x = stack(3, 3), torch.randn(1, WIDTH, 6, 6, dtype=torch.float64, requires_grad=True)
    one, other = (run(layers, x, torch.full((1, WIDTH), value).double()) for value in (0.0, 1.0))
    for before, after in zip(one, other, strict=True):
        assert (before != after).all(1).all()
    assert torch.equal(seen(one[1], x, 3, 3), seen(other[1], x, 3, 3))


@pytest.mark.parametrize("codes", [True, False])
def test_condition_depends_on_the_tokens_before_alone(codes):
    trunk = ConvolutionalTrunk(width=8, depth=7)
    chosen = {"latent_channels": 1, "tokens": CodeTokens(codebook_size=9)} if codes else {"latent_channels": 2}
    head = CategoricalHead() if codes else MixtureHead(components=2)
    config = Architecture(trunk=trunk, head=head).on(latent_size=6, num_classes=3, **chosen)
    model, order = randomised(config), torch.arange(36).expand(2, -1)
    tokens = torch.randint(9, (2, 36, 1)).float() if codes else torch.randn(2, 36, 2)
    vectors = model.class_vectors(torch.tensor([0, 2]), 2)
    before = model.training_conditions(tokens, vectors, order, 0)
    changed = tokens.clone()
    changed[:, 20] += 1 if codes else 3.0
    changed[:, 20] %= 9
    after = model.training_conditions(changed, vectors, order, 0)
    assert torch.equal(before[:, :21], after[:, :21])
    assert (before[:, 21:] != after[:, 21:]).any(-1).all()


def test_every_parameter_has_a_gradient():  # several workers would wait for one without
    config = small_of_codes("pixelcnn", label_drop=0.5)
    model = build_model(config)
    codes = torch.randint(11, (4, 16, 1)).float()
    step_loss(model, StepInput(codes, torch.arange(4), training_draws(config, 0, 0, range(4))))
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("kernel", "depth"), [(3, 2), (5, 3)])
@torch.no_grad()
def test_place_by_place_is_what_all_places_at_once_are_and_costs_one_place(kernel, depth):
    trunk = ConvolutionalTrunk(width=8, depth=depth, kernel=kernel)
    model, order = randomised(replace(small_of_codes(), trunk=trunk)), torch.arange(16).expand(2, -1)
    codes, vectors = torch.randint(11, (2, 16, 1)).float(), model.class_vectors(torch.tensor([0, 1]), 2)
    every, places, rows = model.training_conditions(codes, vectors, order, 0), [], []
    for layer in model.layers:
        layer.before.register_forward_hook(lambda *given: places.append(given[-1].shape[2:]))
        layer.above.register_forward_hook(lambda *given: rows.append(given[-1].shape[2:]))
    for begin in (0, 6):  # after kept tokens it reads them first
        state = model.begin(vectors, order)
        found = torch.cat([model.conditions(state, codes, start, start + 1) for start in range(begin, 16)], 1)
        torch.testing.assert_close(found, every[:, begin:], rtol=1e-4, atol=1e-5)
    assert set(places) == {(1, 1)}
    assert set(rows) == {(1, 4)}
    assert (len(places), len(rows)) == (2 * 16 * depth, 2 * 3 * depth)
