"""Properties of the sampler that hold for any weights."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling import generate
from evaluate.sampling.generate import Generator
from evaluate.sampling.known import Known
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.orders import cosine_reveal, generation_order, reveal_counts
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from infra.seeding import stream
from tests.small_model import HEADS, ORDER_OF, randomised, small
from tokenize_jobs.tokenizers.pixels import Pixels, to_uint8
from tokenize_jobs.tokenizers.small_kl import Shape, SmallKL
from train.models.build import build_model
from train.models.heads import HeadSampling

BF16_LEVELS = 8  # of 255: eight bits of a number, through a few layers

FAST = Sampling(ar_steps=16, diffusion_steps=DiffusionSteps(first=6, last=6), order="raster")


@given(st.integers(1, 400), st.data())
@settings(deadline=None)
def test_reveal_counts_every_token_once_and_at_least_one_a_step(tokens, data):
    steps = data.draw(st.integers(1, tokens))
    for counts in (cosine_reveal(tokens, steps), reveal_counts("gtr", tokens, steps)):
        assert sum(counts) == tokens
        assert len(counts) == steps
        assert min(counts) >= 1


def test_cosine_reveal_equals_the_published_counts():
    assert cosine_reveal(256, 8) == [5, 15, 24, 31, 39, 45, 48, 49]
    assert cosine_reveal(256, 16) == [2, 3, 7, 8, 11, 13, 15, 16, 19, 20, 22, 23, 23, 25, 24, 25]
    assert cosine_reveal(256, 256) == [1] * 256


@pytest.mark.parametrize("kind", ["random", "raster", "halton", "gtr"])
def test_generation_order_is_a_permutation_of_the_tokens(kind):
    order = generation_order(kind, ImageNoise(0, range(3)).order(64))
    assert torch.equal(order.sort(1).values, torch.arange(64).expand(3, -1))


def test_gtr_order_generates_the_even_squares_first():
    order = generation_order("gtr", ImageNoise(0, [0]).order(64))[0]
    parity = (order // 8 + order % 8) % 2
    assert parity.tolist() == [0] * 32 + [1] * 32


@pytest.mark.parametrize("generation", ["random-causal", "raster-causal"])
@torch.no_grad()
def test_causal_cached_sampling_equals_uncached(generation):
    config = small(generation)
    model = randomised(config)
    settings_ = replace(FAST, order=ORDER_OF[generation])
    labels = torch.tensor([0, 1, 2])
    cached = sample(model, labels, ImageNoise(0, range(3)), settings_)
    original = model.conditions

    def from_scratch(state, tokens, start, stop):
        return original(model.begin(state.class_vectors, state.order), tokens, start, stop)

    model.conditions = from_scratch
    torch.testing.assert_close(sample(model, labels, ImageNoise(0, range(3)), settings_), cached, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_image_does_not_depend_on_its_batch(kind):
    model = randomised(small(kind=kind))
    settings_ = replace(FAST, ar_steps=5, order="random", cfg_scale=2.0)
    together = sample(model, torch.arange(4), ImageNoise(7, range(4)), settings_)
    for index in range(4):
        alone = sample(model, torch.tensor([index]), ImageNoise(7, [index]), settings_)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-3, atol=1e-3 * together.abs().max().item())


@pytest.mark.parametrize(
    "same",
    [
        {"diffusion_steps": DiffusionSteps(first=6, last=6, shape="two-stage")},
        {"max_timestep": 999},
    ],
)
def test_accelerator_at_its_neutral_setting_equals_the_base_sampler_bit_for_bit(same):
    model, base = randomised(small()), replace(FAST, ar_steps=4, order="random")
    plain = sample(model, torch.arange(2), ImageNoise(0, range(2)), base)
    assert torch.equal(sample(model, torch.arange(2), ImageNoise(0, range(2)), replace(base, **same)), plain)


def test_diffusion_steps_follow_the_annealing_rule():
    steps = DiffusionSteps(first=50, last=5)
    assert [steps.at(k, 4) for k in range(4)] == [50, 5 + 30, 5 + 15, 5]
    assert steps.label() == "50..5"
    assert [DiffusionSteps(first=50, last=5, shape="two-stage").at(k, 4) for k in range(4)] == [50, 50, 5, 5]


@pytest.mark.parametrize("generation", ["masked", "random-causal"])
def test_editing_returns_kept_tokens_unchanged_and_draws_the_others(generation):
    model = randomised(small(generation))
    latents = torch.randn(2, 3, 4, 4)
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[:2] = True
    settings_ = replace(FAST, ar_steps=8, order="random")
    edited = sample(model, torch.tensor([0, 1]), ImageNoise(0, range(2)), settings_, Known(latents, keep.flatten()))
    assert torch.equal(edited[:, :, :2], latents[:, :, :2])
    assert not torch.isclose(edited[:, :, 2:], latents[:, :, 2:]).any()


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"ar_steps": 17}, [0], "from 1 to the 16 tokens"),
        ({}, [5], "labels must be from 0 to 4"),
        ({"cfg_scale": 2.0}, [0], "label_drop 0"),
        ({"diffusion_steps": DiffusionSteps(first=0, last=0)}, [0], "at least 1"),
    ],
)
def test_sample_bad_settings_are_refused_before_any_compute(changes, labels, message):
    model = randomised(small(label_drop=0.0))
    with pytest.raises(InputError, match=message):
        sample(model, torch.tensor(labels), ImageNoise(0, [0]), replace(FAST, **changes))


def test_sample_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match="16 tokens"):
        sample(
            randomised(small()),
            torch.tensor([0]),
            ImageNoise(0, [0]),
            FAST,
            Known(torch.zeros(1, 3, 4, 4), torch.ones(9).bool()),
        )


def test_untrained_model_in_bf16_draws_finite_latents():
    model = build_model(small()).eval()
    settings_ = replace(FAST, ar_steps=4, order="random", cfg_scale=3.0, precision="bf16")
    latents = sample(model, torch.arange(2), ImageNoise(0, range(2)), settings_)
    assert latents.isfinite().all()
    assert latents.dtype == torch.float32


def counted(graphs):
    def backend(graph, _):
        graphs.append(graph)
        return graph

    return backend


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_one_compiled_denoising_step_serves_all_steps_token_counts_and_guidance_scales(kind):
    head, graphs = randomised(small(kind=kind)).head, []
    eager, compiled = head.denoise, torch.compile(head.denoise, fullgraph=True, dynamic=True, backend=counted(graphs))
    for rows, steps, scale in ((5, 6, 2.0), (14, 7, 3.5), (9, 4, 1.5)):
        given_ = (
            torch.randn(rows, 32),
            torch.randn(steps, rows, 3),
            HeadSampling(steps=steps),
            torch.randn(rows, 32),
            scale,
        )
        head.denoise = compiled
        drawn = head.sample(*given_)
        head.denoise = eager
        torch.testing.assert_close(drawn, head.sample(*given_), rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 2  # the compiler takes the views without an offset for another case


@torch.no_grad()
def test_autoregressive_step_compiles_into_one_graph():
    model = randomised(small())
    vectors, order = model.class_vectors(torch.arange(4), 4), torch.stack([torch.randperm(16) for _ in range(4)])

    def step(vectors, order, tokens):
        return model.conditions(model.begin(vectors, order), tokens, 4, 7)

    given = vectors, order, torch.randn(4, 16, 3)
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(*given), step(*given), rtol=1e-4, atol=1e-4)


class Given(ImageNoise):
    """Keeps what the sampler is given, and the threads that made it."""

    def normal(self, draws, rows, channels):
        self.__dict__.setdefault("threads", set()).add(threading.current_thread())
        self.__dict__.setdefault("given", []).append(super().normal(draws, rows, channels))
        return self.given[-1]


@pytest.mark.parametrize("indices", [[0], [5, 2, 9], range(7)])
def test_noise_made_ahead_is_that_of_each_images_own_stream(indices):
    model, noise = randomised(small()), Given(11, indices)
    steps = DiffusionSteps(first=7, last=2)
    sample(model, torch.zeros(len(indices), dtype=torch.long), noise, replace(FAST, ar_steps=5, diffusion_steps=steps))
    streams = [stream("image", 11, index) for index in indices]
    for random in streams:
        random.permutation(16)
    for step, (count, given_) in enumerate(zip(cosine_reveal(16, 5), noise.given, strict=True)):
        drawn = [random.standard_normal((steps.at(step, 5), count, 3), dtype=np.float32) for random in streams]
        assert np.array_equal(given_, np.stack(drawn, 1))
    assert threading.main_thread() not in noise.threads
    assert not any(thread.is_alive() for thread in noise.threads)


class Casts(TorchDispatchMode):
    """Counts the casts of tensors with as many numbers as `parameter`, or a share of them."""

    def __init__(self, parameter):
        super().__init__()
        self.parameter, self.cast = parameter, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        storage = self.parameter.untyped_storage().data_ptr()
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage().data_ptr() == storage:
            self.cast += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [64, 300])
@torch.no_grad()
def test_modulation_is_cast_once_however_many_denoising_steps_follow(kind, rows):
    head = randomised(small(kind=kind)).head
    weight, condition = head.net.modulation.weight, torch.randn(rows, 32)
    with torch.autocast("cpu", torch.bfloat16), Casts(weight) as casts:
        head.sample(condition, torch.randn(9, rows, 3), HeadSampling(steps=9))
    assert casts.cast == weight.numel()


def test_decoder_sees_no_more_pixels_at_once_than_it_may(monkeypatch):
    monkeypatch.setattr(generate, "_PIXELS_AT_ONCE", 3 * 8 * 8)
    seen = []

    class Decoder(Pixels):
        def decode(self, latents):
            seen.append(len(latents))
            return super().decode(latents)

    generator = Generator.__new__(Generator)
    generator.tokenizer = Decoder()
    latents = torch.randn(8, 3, 8, 8)
    assert np.array_equal(generator.decode(latents), to_uint8(Pixels().decode(latents)))
    assert seen == [3, 3, 2]


def test_decoder_in_bf16_differs_by_rounding_alone_and_is_a_condition():
    torch.manual_seed(0)
    generator = Generator.__new__(Generator)
    generator.tokenizer = SmallKL(Shape(stride=4, channels=4, width=16, depth=1)).eval()
    latents = torch.randn(4, 4, 8, 8)
    exact, rounded = (generator.decode(latents, precision).astype(int) for precision in ("fp32", "bf16"))
    assert 0 < np.abs(exact - rounded).max() <= BF16_LEVELS
    settings_ = Sampling(precision="bf16", decoder_precision="bf16")
    assert settings_.precisions != replace(settings_, decoder_precision="fp32").precisions == "bf16"
