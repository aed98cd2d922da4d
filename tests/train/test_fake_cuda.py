"""The forward pass, the loss and one token's sampling on a GPU that is not there: shapes and devices without numbers.

A tensor on the wrong device, or a read of a value, which would wait for the device, raises. The backward pass is left to
`make gpu`: autograd's engine wants a real device.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from tests.small_model import small
from tests.train.test_var import SHAPE
from tokenize_jobs.config import FitTokenizer
from tokenize_jobs.tokenizers.kl import KLTokenizer, new_kl16
from tokenize_jobs.tokenizers.small_kl import SmallKL
from train.batches import StepInput, training_draws
from train.config import Train
from train.ema import EMA
from train.heldout_loss import loss_of
from train.memory import fake_step
from train.models import replay
from train.models.build import build_model
from train.models.diffusion import sampling_tables
from train.models.flow import flow_rows
from train.models.heads import HeadSampling
from train.models.noise_schedule import cosine_schedule, respaced_schedule
from train.models.replay import Replays
from train.optimizer import Optimization

CUDA = torch.device("cuda")
TABLES = (cosine_schedule, respaced_schedule, sampling_tables, flow_rows)
"""Kept from one call to the next."""
MOST_OPERATORS = {"diffusion": 240, "flow": 170}
"""Of a forward pass with its loss, of four blocks and a head of two: each is a launch, some 5 us on a GPU."""

MOST_OF_ALL = 60
"""Operators of clip, AdamW and averages that are not one a tensor."""


class Operators(TorchDispatchMode):
    """Counts operators that are no views, and keeps those that left a tensor on another device than the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.elsewhere = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.count += func.namespace == "aten" and not func.is_view and func is not torch.ops.aten._unsafe_view.default
        tensors = [
            each for each in (found if isinstance(found, tuple | list) else [found]) if isinstance(each, torch.Tensor)
        ]
        self.elsewhere += [str(func) for each in tensors if each.device.type != "cuda"]
        return found


@contextmanager
def on_fake_gpu(config) -> Iterator[torch.nn.Module]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        with CUDA:
            model = build_model(config)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(CUDA), persistent=False)
        yield model
    for table in TABLES:
        table.cache_clear()  # what was made here is fake


@pytest.mark.parametrize("kind", MOST_OPERATORS)
@pytest.mark.parametrize("generation", ["masked", "random-causal", "raster-causal"])
def test_loss_stays_on_the_gpu_without_a_wait_and_in_few_operators(generation, kind):
    config = small(generation, kind)
    draws = training_draws(config, 0, 1, range(8))
    with on_fake_gpu(config) as model:
        inputs = StepInput(torch.empty(8, 16, 3), torch.zeros(8, dtype=torch.long), draws).to(CUDA)
        with Operators() as operators:
            found = loss_of(model.train(), inputs)
    assert found.loss.device.type == "cuda"
    assert not operators.elsewhere
    assert operators.count <= MOST_OPERATORS[kind], operators.count


def test_what_follows_the_backward_pass_stays_on_the_gpu_without_a_wait():
    """Clip, AdamW, which may skip, and averages; the gradients come from nowhere."""
    config = small()
    with on_fake_gpu(config) as model:
        ema, optimization = EMA(model, 0.99), Optimization(model, Train(warmup_steps=0))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        with Operators() as operators:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimization.grad_clip)
            optimization.step(skip := ~norm.isfinite())
            ema.update(model, skip)
        tensors = len(list(model.parameters()))
    assert not operators.elsewhere
    assert operators.count <= 2 * tensors + MOST_OF_ALL  # on a GPU, averages are one operator a tensor


@pytest.mark.parametrize("kind", MOST_OPERATORS)
def test_token_is_drawn_on_the_gpu_without_a_wait_in_operators_that_grow_with_the_steps_alone(kind):
    config, counts = small(kind=kind), []
    width = config.trunk.width if hasattr(config.trunk, "width") else config.trunk.decoder_width
    with on_fake_gpu(config) as model, torch.no_grad():
        for steps in (5, 10):
            settings = HeadSampling(steps=steps)
            noise = torch.empty(model.head.sampling_draws(settings), 6, 3, device=CUDA)
            condition = torch.empty(6, width, device=CUDA)
            with Operators() as operators:
                drawn = model.head.sample(condition, noise, settings, condition, 2.0)
            assert drawn.device.type == "cuda"
            counts.append(operators.count)
    assert (counts[1] - counts[0]) / 5 <= 50


@pytest.mark.parametrize("kind", MOST_OPERATORS)
def test_replayed_step_copies_its_row_its_time_and_its_noise_and_nothing_else(kind, monkeypatch):
    """What a graph launches is one launch: here nothing, so that what is left is the host's own work."""
    config, counts = small(kind=kind), []
    monkeypatch.setattr(replay, "record", lambda work: work() or (lambda: None))
    with on_fake_gpu(config) as model, torch.no_grad():
        model.head.replays = Replays(model.head.denoise)
        for steps in (5, 10, 5, 10):  # the first two make the tables
            settings = HeadSampling(steps=steps)
            noise = torch.empty(model.head.sampling_draws(settings), 6, 3, device=CUDA)
            condition = torch.empty(6, config.trunk.decoder_width, device=CUDA)
            with Operators() as operators:
                drawn = model.head.sample(condition, noise, settings, condition, 2.0)
            assert drawn.device.type == "cuda"
            counts.append(operators.count)
    assert not operators.elsewhere
    assert counts[3] - counts[2] == 5 * 3


@pytest.mark.parametrize("generation", ["masked", "random-causal"])
def test_whole_sampler_stays_on_the_gpu_without_a_wait_and_takes_noise_from_pinned_memory(generation, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda noise: pinned.append(threading.current_thread()) or noise)
    steps = 4 if generation == "masked" else 16
    settings = Sampling(ar_steps=steps, diffusion_steps=DiffusionSteps(first=3, last=2), cfg_scale=2.0)
    with on_fake_gpu(small(generation)) as model:
        with Operators() as operators:
            # one label, on the host, is the only tensor here whose value is known: its range is checked there
            drawn = sample(model.eval(), torch.tensor([4]), ImageNoise(0, range(1)), settings)
        assert drawn.device.type == "cuda"
        assert drawn.shape == (1, 3, 4, 4)
    assert operators.count > 100
    assert len(pinned) == steps
    assert threading.main_thread() not in pinned


@torch.no_grad()
def test_cache_of_a_next_scale_model_holds_keys_in_half_precision_as_values():
    with fake_step(SHAPE, 2, 14, "bf16", recomputing=False) as (model, inputs):
        state = model.begin(torch.empty(2, 32, device=CUDA), inputs.draws.order)
        model.next_scale(state)
        held = [buffer.dtype for cache in state.caches for buffer in cache._buffers]
    assert held == [torch.bfloat16] * 4


@pytest.mark.parametrize("make", [lambda: SmallKL.new(FitTokenizer(width=16)), lambda: KLTokenizer(new_kl16()).vae])
def test_encoder_and_decoder_stay_on_the_gpu_without_a_wait(make):
    with torch.device("meta"):
        network = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device=CUDA)
        tokenizer = network if isinstance(network, SmallKL) else KLTokenizer(network)
        with Operators() as operators:
            encoded = tokenizer.encode(torch.empty(2, 3, 64, 64, device=CUDA))
            images = tokenizer.decode(encoded[:, : encoded.shape[1] // 2])
    assert not operators.elsewhere
    assert images.shape == (2, 3, 64, 64)


def test_read_of_a_value_raises_here():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(3, device=CUDA).sum().item()
