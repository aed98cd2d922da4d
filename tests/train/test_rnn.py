"""Pixel RNN: gradients say what each token's condition sees, and a step reads one row."""

import torch

from tests.small_model import randomised, small, step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model


def test_condition_sees_exactly_its_raster_prefix():
    model, tokens = randomised(small("rnn")).double(), torch.randn(1, 16, 3, dtype=torch.float64, requires_grad=True)
    found = model.training_conditions(tokens, model.class_vectors(torch.tensor([1]), 1), torch.arange(16)[None], 0)
    for place in range(16):
        (gradient,) = torch.autograd.grad(found[0, place].sum(), tokens, retain_graph=True, allow_unused=True)
        assert torch.equal(gradient[0].abs().sum(1) != 0, torch.arange(16) < place)


@torch.no_grad()
def test_a_step_reads_one_row_wherever_it_is():
    model, tokens = randomised(small("rnn")), torch.randn(2, 16, 3)
    state, read = model.begin(model.class_vectors(torch.tensor([0, 1]), 2), torch.arange(16).expand(2, -1)), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    for start in range(16):
        model.conditions(state, tokens, start, start + 1)
    assert read == [1] * 16 * len(model.layers)


def test_class_and_position_reach_every_condition():
    model, tokens = randomised(small("rnn")), torch.zeros(2, 16, 3)
    found = model.training_conditions(tokens, model.class_vectors(torch.tensor([0, 1]), 2), torch.arange(16), 0)
    assert (found[0] != found[1]).any(-1).all()
    assert len(found[0].unique(dim=0)) == 16


def test_class_biases_each_layer():
    model, tokens = randomised(small("rnn")), torch.randn(1, 16, 3)
    rows = model.rows(tokens, 0, 16)
    for layer in model.layers:
        for other in model.layers:
            other.class_bias.weight.data.fill_(0.1 if other is layer else 0)
        one, other = (model.read(rows, model.class_vectors(torch.tensor([label]), 1), None)[0] for label in (0, 1))
        assert (one != other).all()


def test_every_parameter_has_a_gradient():  # several workers would wait for one without
    config = small("rnn", kind="flow", label_drop=0.5)
    model = build_model(config)
    step_loss(model, StepInput(torch.randn(4, 16, 3), torch.arange(4), training_draws(config, 0, 0, range(4))))
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
