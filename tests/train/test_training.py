"""The training step without Ray: it learns, resumes to the same bytes, and does not depend on the workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from tests.small_model import step_loss
from train.batches import StepInput, training_draws
from train.checkpoint import load_progress, new_model, save_progress
from train.config import Train
from train.ema import EMA
from train.models.config import tiny
from train.models.patchify import patchify
from train.optimizer import Optimization, learning_rate, parameter_groups
from train.step import training_step

MODEL = tiny(32, 2, 4, 64, 2).on(latent_size=4, latent_channels=3, num_classes=4)
CONFIG = Train(train_steps=40, batch_size=8, lr=3e-3, warmup_steps=5, ema_decay=0.9, precision="fp32")
LATENTS = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32))
TOKENS = patchify(LATENTS, 1)
LABELS = torch.arange(8) % 4


def start(config=CONFIG, shape=MODEL):
    model = new_model(shape, config.seed)
    return model, EMA(model, config.ema_decay), Optimization(model, config)


def advance(parts, steps, config=CONFIG):
    model, ema, optimization = parts
    for step in steps:
        draws = training_draws(model.config, config.seed, step, range(8))
        metrics = training_step(model, model, ema, optimization, StepInput(TOKENS, LABELS, draws))
    return metrics


def test_training_resumed_from_a_checkpoint_ends_with_the_same_bytes(tmp_path):
    straight = start()
    advance(straight, range(6))
    first = start()
    advance(first, range(3))
    save_progress(tmp_path, *first)
    second = start(replace(CONFIG, seed=1))
    assert load_progress(tmp_path, *second) == 3
    advance(second, range(3, 6))
    for module, other in ((straight[0], second[0]), (straight[1].model, second[1].model)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_gradient_of_two_workers_equals_that_of_one():
    def gradient(rows):
        model = new_model(MODEL, CONFIG.seed)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        draws = training_draws(MODEL, 1, 5, rows)
        inputs = StepInput(TOKENS[rows.start : rows.stop], LABELS[rows.start : rows.stop], draws)
        step_loss(model, inputs)
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    one, halves = gradient(range(8)), [gradient(range(4)), gradient(range(4, 8))]
    for name, expected in one.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, expected, rtol=1e-4, atol=1e-6)


def test_overfitting_one_batch_regenerates_it():
    config = replace(CONFIG, train_steps=300, lr=4e-3, lr_schedule="cosine", ema_decay=0.95)
    shape = replace(MODEL, label_drop=0.0, num_classes=8, head=replace(MODEL.head, batch_mul=8))
    parts = start(config, shape)
    labels = torch.arange(8)
    for step in range(300):
        draws = training_draws(shape, 0, step, range(8))
        training_step(parts[0], *parts, StepInput(TOKENS, labels, draws))
    settings = Sampling(ar_steps=4, diffusion_steps=DiffusionSteps(first=50, last=50), max_timestep=980)
    drawn = sample(parts[1].model, labels, ImageNoise(0, range(8)), settings)
    nearest = torch.cdist(drawn.flatten(1), LATENTS.flatten(1)).argmin(1)
    assert torch.equal(nearest, labels)
    assert (drawn - LATENTS).square().mean() < 0.25


def test_bf16_training_from_scratch_stays_finite():
    config = replace(CONFIG, precision="bf16")
    metrics = advance(start(config), range(5), config)
    assert all(value.isfinite() for value in metrics.values())


def test_gradient_that_is_not_finite_stops_before_the_weights_move():
    parts = start()
    before = {name: tensor.clone() for name, tensor in parts[0].state_dict().items()}
    draws = training_draws(MODEL, 0, 0, range(8))
    with pytest.raises(FloatingPointError):
        training_step(parts[0], *parts, StepInput(TOKENS * float("inf"), LABELS, draws))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts[0].state_dict().items())


def test_head_and_vectors_are_not_decayed_and_everything_is_optimised_once():
    model = new_model(MODEL, CONFIG.seed)
    plain, decayed = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.02))
    assert plain | decayed == {id(p) for p in model.parameters()}
    assert not plain & decayed
    assert all(id(p) in plain for p in model.head.parameters())
    assert id(model.class_emb.weight) in decayed
    assert id(model.mask_token) in decayed


def test_learning_rate_warms_up_then_follows_its_schedule():
    rates = [learning_rate(step, 1.0, 10, 110, "cosine") for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] < 0.001
    assert learning_rate(100, 1.0, 10, 110, "constant") == 1.0
