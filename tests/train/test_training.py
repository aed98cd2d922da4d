"""The training step without Ray: it learns, resumes to the same bytes, and does not depend on the workers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from tests.small_model import step_loss
from train.batches import StepInput, training_draws
from train.checkpoint import new_model
from train.config import Train
from train.ema import EMA
from train.models.config import tiny
from train.models.patchify import patchify
from train.optimizer import Optimization, learning_rate, parameter_groups
from train.progress import load_progress, snapshot, write_progress
from train.step import training_step
from train.watch import Watch

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
        metrics = training_step(model, model, ema, optimization, [StepInput(TOKENS, LABELS, draws)])
    return metrics


def test_training_resumed_from_a_checkpoint_ends_with_the_same_bytes(tmp_path):
    straight = start()
    advance(straight, range(6))
    first = start()
    advance(first, range(3))
    write_progress(tmp_path, snapshot(*first))
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
        training_step(parts[0], *parts, [StepInput(TOKENS, labels, draws)])
    settings = Sampling(ar_steps=4, diffusion_steps=DiffusionSteps(first=50, last=50), max_timestep=980)
    drawn = sample(parts[1].model, labels, ImageNoise(0, range(8)), settings)
    nearest = torch.cdist(drawn.flatten(1), LATENTS.flatten(1)).argmin(1)
    assert torch.equal(nearest, labels)
    assert (drawn - LATENTS).square().mean() < 0.25


def test_bf16_training_from_scratch_stays_finite():
    config = replace(CONFIG, precision="bf16")
    metrics = advance(start(config), range(5), config)
    assert all(value.isfinite() for value in metrics.values())


def state(parts):
    """Copies of all weights, averages and moments."""
    model, ema, optimization = parts
    moments = [optimization.adamw.state[parameter] for parameter in model.parameters()]
    tensors = [*model.state_dict().values(), *ema.model.state_dict().values()]
    return [tensor.clone() for tensor in (*tensors, *(tensor for each in moments for tensor in each.values()))]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_step_whose_gradient_is_not_finite_moves_nothing_but_the_step_number(bad):
    parts = start()
    advance(parts, range(2))
    before = state(parts)
    draws = training_draws(MODEL, CONFIG.seed, 2, range(8))
    training_step(parts[0], *parts, [StepInput(TOKENS * bad, LABELS, draws)])
    assert all(torch.equal(*pair) for pair in zip(state(parts), before, strict=True))
    assert parts[2].step_number == 3
    assert advance(parts, range(3, 4))["grad_norm"].isfinite()
    assert not all(torch.equal(*pair) for pair in zip(state(parts), before, strict=True))


class Waits(TorchDispatchMode):
    """Refuses to read a tensor's value on the host, which waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the step waits for the device"
        return func(*args, **(kwargs or {}))


def test_training_step_reads_no_value_from_the_device():
    parts = start()
    advance(parts, range(1))
    with Waits():
        advance(parts, range(1, 2))


def watched(parts, watch, bad, steps, every=4, left_out=()):
    """The lines of a log of these steps; the batches of steps `bad` (1-based) hold a NaN, others are left out."""
    lines = {}
    for done in range(1, steps + 1):
        if done in left_out:
            parts[2].step_number += 1
            continue
        draws = training_draws(MODEL, CONFIG.seed, done, range(8))
        tokens = TOKENS.clone()
        if done in bad:
            tokens[3, 5, 1] = float("nan")
        watch.add(done, training_step(parts[0], *parts, [StepInput(tokens, LABELS, draws)]))
        if done % every == 0:
            lines[done] = watch.fetch()
    return lines


def test_training_with_a_bad_batch_is_that_without_the_batch_and_logs_its_step():
    skipped, without = watched(start(), Watch(10), (6,), 12), watched(start(), Watch(10), (), 12, left_out=(6,))
    assert (skipped[8].pop("skipped"), skipped[8].pop("skipped_step")) == (1, 6)
    assert skipped == without


def test_line_of_a_skipped_step_tells_the_newest_that_was_taken():
    line = watched(start(), Watch(10), (8,), 8)[8]
    assert line["skipped_step"] == 8
    assert all(np.isfinite(value) for value in line.values())


def test_run_of_bad_batches_ends_the_training_with_step_and_loss():
    with pytest.raises(FloatingPointError, match=r"10 steps in a row .*step 12: loss nan, gradient norm nan"):
        watched(start(), Watch(10), range(3, 13), 12)
    assert watched(start(), Watch(3), (1, 2, 4, 5), 8).keys() == {4, 8}, "two and two are not three in a row"


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


def test_linear_schedule_is_flat_for_a_twentieth_and_ends_at_the_share_asked_for():
    rates = [learning_rate(step, 2.0, 10, 110, "linear", 0.1) for step in range(110)]
    assert rates[10:16] == [2.0] * 6
    falls = [before - after for before, after in pairwise(rates[15:])]
    assert falls == pytest.approx([2.0 * 0.9 / 95] * 94)
    assert learning_rate(110, 2.0, 10, 110, "linear", 0.1) == pytest.approx(0.2)
