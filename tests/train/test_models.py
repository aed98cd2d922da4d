"""Properties of the models that hold for any weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.config import DiffusionSteps, Sampling
from evaluate.orders import generation_order, reveal_counts
from evaluate.sampler import ImageNoise, Known, sample
from infra.errors import InputError
from train.batches import training_draws
from train.models.build import build_model
from train.models.config import Head, mar_base, mar_huge, mar_large, tiny
from train.models.diffloss import DiffusionLoss
from train.models.diffusion import TrainingTables, q_sample, sampling_tables
from train.models.flow import FlowLoss
from train.models.head import HeadSampling
from train.models.masking import cosine_reveal, num_masked
from train.models.noise_schedule import cosine_schedule, respaced_schedule
from train.models.patchify import patchify, unpatchify


def small(generation="masked", kind="diffusion", **changes):
    shape = replace(tiny(32, 2, 4, 32, 2), latent_size=4, latent_channels=3, num_classes=5, generation=generation)
    return replace(shape, head=replace(shape.head, kind=kind), **changes)


def randomised(config, seed=0):
    """A model with every weight random, so that nothing is hidden by a zero initialisation."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


FAST = Sampling(ar_steps=16, diffusion_steps=DiffusionSteps(first=6, last=6), order="raster")
ORDER_OF = {"masked": "random", "random-causal": "random", "raster-causal": "raster"}


@pytest.mark.parametrize(
    ("shape", "parameters"), [(mar_base(), 207_924_768), (mar_large(), 478_326_304), (mar_huge(), 942_403_104)]
)
def test_published_sizes_have_the_published_number_of_parameters(shape, parameters):
    with torch.device("meta"):
        model = build_model(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_unpatchify_inverts_patchify(batch, channels, side, patch):
    latents = torch.randn(batch, channels, side * patch, side * patch)
    assert torch.equal(unpatchify(patchify(latents, patch), patch), latents)


def test_q_sample_equals_the_equation_in_float64():
    betas = [
        min(
            1
            - math.cos(((i + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
            / math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2,
            0.999,
        )
        for i in range(1000)
    ]
    alpha_bar = np.cumprod(1 - np.array(betas))
    t = np.array([0, 1, 500, 998, 999])
    x0, noise = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = np.sqrt(alpha_bar[t])[:, None] * x0 + np.sqrt(1 - alpha_bar[t])[:, None] * noise
    ours = q_sample(torch.tensor(x0).float(), torch.tensor(noise).float(), torch.tensor(t), TrainingTables())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-6, atol=1e-6)


def test_posterior_equals_bayes_rule_in_float64():
    schedule = respaced_schedule(50)
    alpha_bar = schedule.alpha_bar.numpy()
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    alpha = alpha_bar / previous
    i = np.arange(1, 50)
    # precision of x_{t-1} given x_0 (prior) and given x_t (likelihood)
    precision = 1 / (1 - previous[i]) + alpha[i] / (1 - alpha[i])
    np.testing.assert_allclose(schedule.posterior_variance.numpy()[i], 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(
        schedule.posterior_mean_coef_x0.numpy()[i], np.sqrt(previous[i]) / (1 - previous[i]) / precision, rtol=1e-9
    )
    np.testing.assert_allclose(
        schedule.posterior_mean_coef_xt.numpy()[i], np.sqrt(alpha[i]) / (1 - alpha[i]) / precision, rtol=1e-9
    )


def test_schedule_first_asked_for_while_building_on_another_device_holds_numbers():
    cosine_schedule.cache_clear()
    respaced_schedule.cache_clear()
    with torch.device("meta"):
        build_model(small())
        respaced_schedule(10)
    assert cosine_schedule().alpha_bar[0].item() == pytest.approx(0.999958715775178)
    assert respaced_schedule(10).betas[0].item() == pytest.approx(4.128422482e-05)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1024))
def test_num_masked_stays_within_the_published_range(uniform, tokens):
    assert min(math.ceil(0.7 * tokens - 1e-9), tokens) <= num_masked(uniform, tokens, 0.7) <= tokens


def test_num_masked_has_the_published_mean_and_share_of_fully_masked_steps():
    counts = np.array([num_masked(u, 256, 0.7) for u in (np.arange(20_000) + 0.5) / 20_000])
    assert abs(counts.mean() - 222.4) < 0.1
    assert abs((counts == 256).mean() - 0.0157) < 0.001


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


@pytest.mark.parametrize("generation", ["masked", "random-causal", "raster-causal"])
def test_loss_gradient_is_zero_at_tokens_that_are_not_predicted(generation):
    config = small(generation)
    model, draws = randomised(config), training_draws(config, 0, 3, range(2))
    latents = torch.randn(2, 16, 3, requires_grad=True)
    visible = draws.order[:, : draws.num_visible]
    targets = latents.gather(1, visible[..., None].expand(-1, -1, 3))
    loss = model(latents.detach(), torch.tensor([0, 1]), draws).loss
    changed = latents.detach().clone()
    if draws.num_visible:  # as targets they do not count; as inputs they do, so compare head targets only
        head_targets = torch.autograd.grad(model(latents, torch.tensor([0, 1]), draws).loss, latents)[0]
        assert head_targets.abs().sum() > 0
    hidden = draws.order[:, draws.num_visible :]
    if generation == "masked":  # masked tokens are not read by the trunk: only their own loss may move
        conditions = model.training_conditions(
            changed, model.class_vectors(torch.tensor([0, 1]), 2), draws.order, draws.num_visible
        )
        changed.scatter_(1, hidden[..., None].expand(-1, -1, 3), 9.0)
        again = model.training_conditions(
            changed, model.class_vectors(torch.tensor([0, 1]), 2), draws.order, draws.num_visible
        )
        assert torch.equal(conditions, again)
    assert loss.isfinite()
    assert targets.shape[1] == draws.num_visible


@pytest.mark.parametrize("generation", ["random-causal", "raster-causal"])
def test_causal_model_conditions_do_not_depend_on_later_tokens(generation):
    config = small(generation)
    model, draws = randomised(config), training_draws(config, 0, 0, range(2))
    tokens, vectors = torch.randn(2, 16, 3), model.class_vectors(torch.tensor([1, 2]), 2)
    before = model.training_conditions(tokens, vectors, draws.order, 0)
    last = draws.order[:, 8:]
    changed = tokens.scatter(1, last[..., None].expand(-1, -1, 3), 5.0)
    after = model.training_conditions(changed, vectors, draws.order, 0)
    first = draws.order[:, :9]
    torch.testing.assert_close(*(z.gather(1, first[..., None].expand(-1, -1, 32)) for z in (before, after)))


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


@pytest.mark.parametrize("generation", list(ORDER_OF))
def test_training_conditions_equal_those_of_sampling_step_by_step(generation):
    config = small(generation)
    model = randomised(config)
    tokens, order = torch.randn(2, 16, 3), ImageNoise(0, range(2)).order(16)
    if generation == "raster-causal":
        order = torch.arange(16).expand(2, -1)
    vectors = model.class_vectors(torch.tensor([0, 1]), 2)
    state = model.begin(vectors, order)
    with torch.no_grad():
        for start in range(16):
            stepwise = model.conditions(state, tokens, start, start + 1)
            at_once = model.training_conditions(tokens, vectors, order, start)
            row = order[:, start:].argsort(1).argsort(1)[:, :1]  # where the first of the order lies by position
            torch.testing.assert_close(
                stepwise, at_once.gather(1, row[..., None].expand(-1, -1, 32)), rtol=1e-4, atol=1e-4
            ) if (generation != "masked" or start == 15) else None


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_image_does_not_depend_on_its_batch(kind):
    model = randomised(small(kind=kind))
    settings_ = replace(FAST, ar_steps=5, order="random", cfg_scale=2.0)
    together = sample(model, torch.arange(4), ImageNoise(7, range(4)), settings_)
    for index in range(4):
        alone = sample(model, torch.tensor([index]), ImageNoise(7, [index]), settings_)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-3, atol=1e-3 * together.abs().max().item())


def test_sampling_with_cfg_scale_one_equals_unguided_bit_for_bit():
    model, settings_ = randomised(small()), replace(FAST, ar_steps=4, order="random")
    unguided = sample(model, torch.arange(3), ImageNoise(0, range(3)), replace(settings_, cfg_scale=1.0))
    constant = sample(
        model, torch.arange(3), ImageNoise(0, range(3)), replace(settings_, cfg_scale=1.0, cfg_schedule="constant")
    )
    assert torch.equal(unguided, constant)


@pytest.mark.parametrize(
    "same",
    [
        {"diffusion_steps": DiffusionSteps(first=6, last=6, shape="two-stage")},
        {"diffusion_steps": DiffusionSteps(first=6, last=6, shape="linear")},
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
    with torch.autocast("cpu", torch.bfloat16):
        latents = sample(
            model, torch.arange(2), ImageNoise(0, range(2)), replace(FAST, ar_steps=4, order="random", cfg_scale=3.0)
        )
    assert latents.isfinite().all()
    assert latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "solver", "steps"),
    [
        ("diffusion", "ancestral", 100),
        ("diffusion", "ddim", 50),
        ("diffusion", "dpm-solver++", 20),
        ("flow", "ancestral", 50),
        ("flow", "ddim", 50),
    ],
)
def test_head_trained_on_a_mixture_samples_it(kind, solver, steps, trained_heads):
    head, draw = trained_heads[kind]
    from train.models.head import HeadSampling

    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((steps, 4000, 2), dtype=np.float32))
    # from t = 999 the error of a head trained for seconds, times 20,000, would throw single samples far away
    settings_ = HeadSampling(steps=steps, solver=solver, max_timestep=980 if kind == "diffusion" else None)
    with torch.no_grad():
        drawn = head.sample(torch.zeros(4000, 4), noise, settings_)
    true, again = draw(4000, 2), draw(4000, 3)
    assert (drawn.mean(0) - true.mean(0)).abs().max() < 0.1
    assert (drawn.std(0) - true.std(0)).abs().max() < 0.12
    assert energy_distance(drawn, true) < 0.02 + energy_distance(again, true)


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013): zero exactly for equal distributions."""
    a, b = a[:2000], b[:2000]
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


@pytest.fixture(scope="module")
def trained_heads():
    """Both kinds of head, trained for some seconds on two Gaussians at (-1, 0.5) and (1, -0.5)."""

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        side = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1
        return torch.cat([side, -0.5 * side], 1) + 0.25 * torch.randn(count, 2, generator=generator)

    heads = {}
    for kind, cls in (("diffusion", DiffusionLoss), ("flow", FlowLoss)):
        torch.manual_seed(0)
        head, generator = cls(2, 4, 64, 2), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900)
        for step in range(900):
            target = draw(256, step + 10)
            uniform = torch.rand(2, 256, generator=generator)
            noise = torch.randn(2, 256, 2, generator=generator)
            optimizer.zero_grad()
            head.loss(target, torch.zeros(256, 4), uniform, noise).loss.backward()
            optimizer.step()
            schedule.step()
        heads[kind] = (head.eval(), draw)
    return heads


def test_schedule_ends_in_noise():
    assert cosine_schedule().alpha_bar[-1].item() == pytest.approx(2.4287669070e-09, rel=1e-9)
    assert Head().batch_mul == 4


def test_head_output_of_a_row_does_not_depend_on_how_many_there_are():
    head = randomised(small()).diffloss.net
    x, time, condition = torch.randn(600, 3), torch.randn(1, head.width), torch.randn(600, head.width)
    many, few = head(x, time, condition), head(x[:50], time, condition[:50])
    torch.testing.assert_close(many[:50], few)


@pytest.mark.parametrize(("generation", "kind"), [("masked", "diffusion"), ("random-causal", "flow")])
def test_training_step_compiles_into_one_graph(generation, kind):
    # fullgraph refuses graph breaks, data-dependent shapes and waits for the host: what CUDA graphs need as well
    model = randomised(small(generation, kind))
    draws, tokens, labels = training_draws(model.config, 0, 0, range(12)), torch.randn(12, 16, 3), torch.arange(12) % 4
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(tokens, labels, draws).loss, model(tokens, labels, draws).loss)


def test_sampling_step_compiles_into_one_graph():
    model = randomised(small())
    settings, tables = HeadSampling(steps=5), sampling_tables(5, None, torch.device("cpu"))
    vectors, order = model.class_vectors(torch.arange(4), 4), torch.stack([torch.randperm(16) for _ in range(4)])

    @torch.no_grad()
    def step(vectors, order, tokens, noise):
        condition = model.conditions(model.begin(vectors, order), tokens, 4, 7).flatten(0, 1)
        return model.diffloss.denoise(condition, noise, settings, tables, condition * 0, 2.0)

    given = vectors, order, torch.randn(4, 16, 3), torch.randn(5, 12, 3)
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(*given), step(*given), rtol=1e-4, atol=1e-4)
