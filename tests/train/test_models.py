"""Properties of the models that hold for any weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from evaluate.sampling.noise import ImageNoise
from tests.small_model import ORDER_OF, randomised, small, step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model
from train.models.config import mar_base, mar_huge, mar_large
from train.models.heads import DiffusionHead, MixtureHead
from train.models.patchify import patchify, unpatchify
from train.models.transformer import attend, put_rows, take_rows
from train.models.trunks import num_masked


@pytest.mark.parametrize(
    ("shape", "parameters"), [(mar_base(), 207_924_768), (mar_large(), 478_326_304), (mar_huge(), 942_403_104)]
)
def test_published_sizes_have_the_published_number_of_parameters(shape, parameters):
    with torch.device("meta"):
        model = build_model(shape.on(latent_size=16, latent_channels=16, num_classes=1000))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_unpatchify_inverts_patchify(batch, channels, side, patch):
    latents = torch.randn(batch, channels, side * patch, side * patch)
    assert torch.equal(unpatchify(patchify(latents, patch), patch, (side, side)), latents)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_bf16_numbers_is_computed_in_float32_on_a_processor_and_as_it_is_on_a_gpu(causal):
    rows = [torch.randn(2, 3, 5, 8, dtype=torch.bfloat16) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*rows, causal=causal)
    exact = torch.nn.functional.scaled_dot_product_attention(*(of.float() for of in rows), is_causal=causal)
    assert torch.equal(found, exact)
    with FakeTensorMode():
        on_gpu = [torch.empty(2, 3, 5, 8, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        assert attend(*on_gpu, causal=causal).dtype == torch.bfloat16


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1024))
def test_num_masked_stays_within_the_published_range(uniform, tokens):
    assert min(math.ceil(0.7 * tokens - 1e-9), tokens) <= num_masked(uniform, tokens, 0.7) <= tokens


def test_num_masked_has_the_published_mean_and_share_of_fully_masked_steps():
    counts = np.array([num_masked(u, 256, 0.7) for u in (np.arange(20_000) + 0.5) / 20_000])
    assert abs(counts.mean() - 222.4) < 0.1
    assert abs((counts == 256).mean() - 0.0157) < 0.001


@pytest.mark.parametrize("generation", list(ORDER_OF))
def test_loss_gradient_is_zero_at_tokens_that_are_not_predicted(generation):
    model, draws = randomised(small(generation)), training_draws(small(generation), 0, 0, range(2))
    tokens, labels = torch.randn(2, 16, 3, requires_grad=True), torch.tensor([0, 1])
    vectors = model.class_vectors(labels, 2, draws.drop_label)
    condition = model.training_conditions(tokens, vectors, draws.order, draws.num_visible).detach()
    # visible tokens count through it, and through nothing else
    model.forward = lambda *_: condition
    step_loss(model, StepInput(tokens, labels, draws))
    visible, predicted = take_rows(tokens.grad, draws.order).split((draws.num_visible, 16 - draws.num_visible), 1)
    assert visible.shape[1] == (4 if generation == "masked" else 0)
    assert (visible == 0).all()
    assert (predicted != 0).any(-1).all()


def test_masked_model_conditions_do_not_depend_on_masked_tokens():
    model, order = randomised(small()), ImageNoise(0, range(2)).order(16)
    tokens, vectors = torch.randn(2, 16, 3), model.class_vectors(torch.tensor([0, 1]), 2)
    changed = put_rows(tokens, order[:, 4:], torch.full((2, 12, 3), 9.0))
    conditions = (model.training_conditions(given_tokens, vectors, order, 4) for given_tokens in (tokens, changed))
    assert torch.equal(*conditions)


@pytest.mark.parametrize("generation", [of for of in ORDER_OF if of != "masked"])
def test_causal_model_conditions_do_not_depend_on_later_tokens(generation):
    config = small(generation)
    model, draws = randomised(config), training_draws(config, 0, 0, range(2))
    tokens, vectors = torch.randn(2, 16, 3), model.class_vectors(torch.tensor([1, 2]), 2)
    before = model.training_conditions(tokens, vectors, draws.order, 0)
    last = draws.order[:, 8:]
    changed = put_rows(tokens, last, torch.full((2, 8, 3), 5.0))
    after = model.training_conditions(changed, vectors, draws.order, 0)
    first = draws.order[:, :9]
    assert torch.equal(take_rows(before, first), take_rows(after, first))


@pytest.mark.parametrize("generation", list(ORDER_OF))
def test_training_conditions_equal_those_of_sampling_step_by_step(generation):
    config = small(generation)
    model = randomised(config)
    tokens, order = torch.randn(2, 16, 3), ImageNoise(0, range(2)).order(16)
    if ORDER_OF[generation] == "raster":
        order = torch.arange(16).expand(2, -1)
    vectors = model.class_vectors(torch.tensor([0, 1]), 2)
    state = model.begin(vectors, order)
    with torch.no_grad():
        for start in range(16):
            stepwise = model.conditions(state, tokens, start, start + 1)
            at_once = model.training_conditions(tokens, vectors, order, start)
            row = order[:, start:].argsort(1).argsort(1)[:, :1]  # where the first of the order lies by position
            torch.testing.assert_close(stepwise, take_rows(at_once, row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("generation", "kind"), [("masked", "diffusion"), ("random-causal", "flow")])
def test_training_step_compiles_into_one_graph(generation, kind):
    # fullgraph refuses graph breaks, data-dependent shapes and waits for the host: what CUDA graphs need as well
    model = randomised(small(generation, kind))
    draws = training_draws(model.config, 0, 0, range(12))
    inputs = StepInput(torch.randn(12, 16, 3), torch.arange(12) % 4, draws)

    def loss(inputs):
        draws = inputs.draws
        masked = draws.order[:, draws.num_visible :].sort(1).values
        condition = model(inputs.tokens, inputs.labels, draws.drop_label, draws.order, draws.num_visible)
        return model.head.loss(take_rows(inputs.tokens, masked), condition, draws.head).loss

    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(inputs), loss(inputs))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patch_size": 0}, "patch-size 0"),
        ({"head": DiffusionHead(batch_mul=0)}, "head.batch-mul 0"),
        ({"head": MixtureHead(components=0)}, "head.components 0"),
        ({"trunk": {"encoder_heads": 0}}, "encoder-heads 0"),
        ({"trunk": {"decoder_depth": 0}}, "decoder-depth 0"),
        ({"trunk": {"buffer_size": 0}}, "buffer-size 0"),
        ({"trunk": {"dropout": 1.5}}, "trunk.dropout 1.5 must be from 0 to 1"),
        ({"trunk": {"mask_ratio_min": -0.1}}, "trunk.mask-ratio-min -0.1 must be from 0 to 1"),
        ({"label_drop": math.nan}, "label-drop nan must be from 0 to 1"),
    ],
    ids=str,
)
def test_sizes_without_sense_are_refused(change, told):
    config = small()
    change = {name: replace(config.trunk, **of) if name == "trunk" else of for name, of in change.items()}
    with pytest.raises(ValueError, match=told):
        replace(config, **change).check()


def test_causal_trunk_without_a_row_for_the_class_would_read_what_it_predicts_and_is_refused():
    config = small("random-causal")
    with pytest.raises(ValueError, match="buffer-size 0"):
        replace(config, trunk=replace(config.trunk, buffer_size=0)).check()
