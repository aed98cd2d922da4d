"""Next-scale prediction: exact to the arrays of the published code, and what must hold for any weights."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from tests.golden_arrays import assert_reproduced, load
from tests.small_model import randomised, step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model
from train.models.categorical import filtered
from train.models.config import Architecture
from train.models.heads import CategoricalHead, MixtureHead
from train.models.published import from_published, recognise, to_published
from train.models.tokens import CodeTokens, MultiScaleTokens
from train.models.trunks import CausalTrunk, NextScaleTrunk

GRADIENTS = 2e-4
"""Of the largest value of a gradient."""
FILES = ("var_tiny", "var_shared")
CODES = {"kind": "multi-scale codes", "codebook_size": 7, "channels": 4, "scales": (1, 2, 3), "phis": 3}
TOKENS = MultiScaleTokens(**CODES)
TRUNK = NextScaleTrunk(width=32, depth=2, heads=4, drop_path=0.0, gate_init=1.0)
SHAPE = Architecture(trunk=TRUNK, head=CategoricalHead()).on(
    latent_size=3, latent_channels=1, num_classes=5, tokens=TOKENS
)
SETTINGS = Sampling(ar_steps=3, order="raster")


def small_var(**changes):
    """A model with every weight random, the codebook among them."""
    model = randomised(replace(SHAPE, trunk=replace(TRUNK, **changes)))
    with torch.no_grad():
        model.z_proj.scales.codebook.vectors.normal_()
        model.fake_latent.normal_()
        model.class_emb.weight.normal_()
    return model


def some_codes(batch=2, seed=0):
    return torch.randint(7, (batch, 14, 1), generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture(params=FILES)
def golden(request):
    return load(request.param)


def recorded_model(golden):
    """The recorded model with its tokenizer's codebook and phis, and its patch numbers' counts."""
    model = build_model(recognise(golden.published_state)).eval()
    scales = {"codebook.vectors": golden.arrays["vae_state.quantize.embedding.weight"]}
    scales |= {
        f"phis.{i}.{kind}": golden.arrays[f"vae_state.quantize.quant_resi.qresi_ls.{i}.{kind}"]
        for i in range(4)
        for kind in ("weight", "bias")
    }
    model.z_proj.scales.load_state_dict(scales)
    own = {f"z_proj.scales.{name}": of for name, of in scales.items()}
    model.load_state_dict(from_published(golden.published_state) | own)
    return model


def test_shape_is_recognised_and_tensors_come_back_equal(golden):
    model, config = recorded_model(golden), golden.meta["config"]
    trunk = model.config.trunk
    assert (trunk.depth, trunk.width, trunk.heads, trunk.mlp_ratio) == tuple(
        config[name] for name in ("depth", "embed_dim", "num_heads", "mlp_ratio")
    )
    assert (trunk.adaln == "shared") == config["shared_aln"]
    assert list(model.config.tokens.scales) == config["patch_nums"]
    assert model.config.num_classes == config["num_classes"]
    back = to_published(model.state_dict(), model.config)
    assert back.keys() == golden.published_state.keys()
    assert all(torch.equal(back[name], of) for name, of in golden.published_state.items())


def test_teacher_forcing_gives_the_recorded_arrays_and_gradients(golden):
    model, arrays = recorded_model(golden), golden.arrays
    codes, labels = arrays["vq.ids"], arrays["tf.labels"]
    order = torch.arange(codes.shape[1]).expand(len(codes), -1)
    seen = []
    handles = [model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    handles += [block.register_forward_hook(lambda *args: seen.append(args[2])) for block in model.blocks]
    condition = model(codes[..., None].float(), labels, torch.zeros_like(labels, dtype=torch.bool), order, 0)
    for handle in handles:
        handle.remove()
    assert_reproduced(seen[0].detach(), arrays["tf.x_in"])
    assert_reproduced(torch.stack(seen[1:]).detach(), arrays["tf.block_out"])
    logits = model.head.logits(condition)
    assert_reproduced(logits.detach(), arrays["tf.logits"])
    loss = model.head.loss(codes[..., None].float(), condition, {}).loss
    assert_reproduced(loss.detach()[None], arrays["tf.loss"])
    assert_reproduced(
        model.head.log_density(codes.reshape(-1, 1).float(), condition.detach().flatten(0, 1)).detach(),
        -arrays["tf.loss_per_token"].flatten(),
    )
    loss.backward()
    published = to_published(
        {name: of.grad for name, of in model.named_parameters() if of.grad is not None}, model.config
    )
    recorded = {name.removeprefix("tf.grad."): of for name, of in arrays.items() if name.startswith("tf.grad.")}
    for name, gradient in recorded.items():
        assert (published[name] - gradient).abs().max() < GRADIENTS * gradient.abs().max(), name
    null = model.training_conditions(codes[..., None].float(), model.class_vectors(None, len(codes)), order, 0)
    assert_reproduced(model.head.logits(null).detach(), arrays["tf.logits_null"])


def test_without_normalised_queries_the_recorded_logits_follow():
    golden = load("var_shared")
    state = {name: of for name, of in golden.published_state.items() if "scale_mul" not in name}
    config = replace(recorded_model(golden).config, trunk=replace(recognise(state).trunk, heads=2))
    assert not config.trunk.l2_norm
    model = build_model(config).eval()
    own = {name: of for name, of in recorded_model(golden).state_dict().items() if name.startswith("z_proj.scales.")}
    model.load_state_dict(from_published(state) | own)
    codes, labels = golden.arrays["vq.ids"], golden.arrays["tf.labels"]
    vectors = model.class_vectors(labels, len(labels))
    condition = model.training_conditions(codes[..., None].float(), vectors, codes, 0)
    assert_reproduced(model.head.logits(condition).detach(), golden.arrays["nol2.logits"])


def sampled_runs(golden):
    """The recorded runs that draw codes and change none: number and settings."""
    runs = enumerate(golden.meta["sampling"])
    return [(j, run) for j, run in runs if not run["more_smooth"] and "edit" not in run]


@torch.no_grad()
def test_sampling_gives_the_recorded_logits_filters_and_inputs(golden):
    model = recorded_model(golden)
    counts = model.config.tokens.together
    for j, run in sampled_runs(golden):
        recorded = {name.partition(".")[2]: of for name, of in golden.arrays.items() if name.startswith(f"sample{j}.")}
        settings = Sampling(
            ar_steps=len(counts), order="raster", cfg_scale=1 + run["cfg"], cfg_schedule="steps",
            top_k=run["top_k"], top_p=run["top_p"] or 1.0,
        )  # fmt: skip
        settings.check(model.config)
        tokens, labels = recorded["ids"][..., None].float(), recorded["labels"]
        vectors = torch.cat([model.class_vectors(labels, len(labels)), model.class_vectors(None, len(labels))])
        state, start, found, kept, sums = model.begin(vectors, recorded["ids"].repeat(2, 1)), 0, [], [], []
        for step, count in enumerate(counts):
            both = model.conditions(state, tokens.repeat(2, 1, 1), start, start + count)
            condition, null = both.chunk(2)
            guidance = settings.cfg_at(step, recorded["ids"].shape[1] - start - count, recorded["ids"].shape[1])
            found.append(model.head.logits(condition, null, guidance))
            kept.append(filtered(found[-1], settings.top_k, settings.top_p))
            start += count
            if step:
                sums.append(state.features[: len(labels)])
        assert_reproduced(torch.cat(found, 1), recorded["logits"])
        assert_reproduced(torch.stack(sums), recorded["f_hat"][:-1])
        if "filtered" in recorded:
            ours, theirs = torch.cat(kept, 1), recorded["filtered"]
            assert torch.equal(ours.isfinite(), theirs.isfinite())
            assert_reproduced(ours[theirs.isfinite()], theirs[theirs.isfinite()])


def test_at_the_start_the_loss_is_that_of_equal_probabilities():
    model = build_model(SHAPE)
    loss = step_loss(model, StepInput(some_codes(), torch.arange(2), training_draws(SHAPE, 0, 0, range(2))))
    assert loss.item() == pytest.approx(torch.tensor(7.0).log().item())


@pytest.mark.parametrize("changes", [{}, {"adaln": "shared"}, {"l2_norm": False}], ids=str)
@torch.no_grad()
def test_condition_depends_on_coarser_scales_alone(changes):
    model, codes = small_var(**changes), some_codes()
    order, vectors = torch.arange(14).expand(2, -1), model.class_vectors(torch.tensor([0, 2]), 2)
    before = model.training_conditions(codes, vectors, order, 0)
    edges = (0, 1, 5, 14)
    for start, stop in pairwise(edges):
        changed = codes.clone()
        changed[:, start:stop] = (changed[:, start:stop] + 1) % 7
        after = model.training_conditions(changed, vectors, order, 0)
        assert torch.equal(before[:, :stop], after[:, :stop])
        assert (before[:, stop:] != after[:, stop:]).any(-1).all()


@pytest.mark.parametrize("changes", [{}, {"adaln": "shared"}], ids=str)
@torch.no_grad()
def test_cached_sampling_equals_teacher_forcing_in_one_pass_a_scale(changes, monkeypatch):
    model, labels, passes = small_var(**changes), torch.tensor([0, 3, 4]), []
    model.blocks[0].register_forward_hook(lambda *args: passes.append(args[2].shape[1]))
    taken, whole = [], model.conditions
    monkeypatch.setattr(model, "conditions", lambda *args: taken.append(whole(*args)) or taken[-1])
    codes = sample(model, labels, ImageNoise(0, range(3)), SETTINGS)
    assert codes.shape == (3, 1, 14, 1)
    assert passes == [1, 4, 9]
    order = torch.arange(14).expand(3, -1)
    forced = model.training_conditions(codes[:, 0], model.class_vectors(labels, 3), order, 0)
    torch.testing.assert_close(torch.cat(taken, 1), forced, rtol=1e-4, atol=1e-5)


def test_images_do_not_depend_on_their_batch_and_guidance_one_is_none():
    model, labels = small_var(), torch.tensor([0, 3, 4])
    settings = replace(SETTINGS, top_k=5, top_p=0.9, cfg_scale=2.5, cfg_schedule="steps")
    codes = sample(model, labels, ImageNoise(0, range(3)), settings)
    assert torch.equal(codes[1:], sample(model, labels[1:], ImageNoise(0, range(1, 3)), settings))
    one, plain = replace(settings, cfg_scale=1.0), replace(SETTINGS, top_k=5, top_p=0.9)
    assert torch.equal(*(sample(model, labels, ImageNoise(0, range(3)), of) for of in (one, plain)))


def test_all_trained_parameters_have_gradients_and_the_tokenizers_parts_have_none():
    config = replace(SHAPE, label_drop=0.5)
    model = small_var()
    before = {name: of.clone() for name, of in model.z_proj.scales.state_dict().items()}
    step_loss(model.train(), StepInput(some_codes(4), torch.arange(4), training_draws(config, 0, 0, range(4))))
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"z_proj.scales.phis.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert all(torch.equal(of, before[name]) for name, of in model.z_proj.scales.state_dict().items())


def test_stochastic_depth_drops_images_while_training_alone():
    model, codes = small_var(drop_path=0.9), some_codes(64)
    order, vectors = torch.arange(14).expand(64, -1), model.class_vectors(None, 64)
    whole = model.training_conditions(codes, vectors, order, 0)
    torch.manual_seed(0)
    dropped = model.train().training_conditions(codes, vectors, order, 0)
    assert not torch.allclose(whole, dropped)
    assert torch.equal(whole, model.eval().training_conditions(codes, vectors, order, 0))


@pytest.mark.parametrize(
    ("settings", "kept", "fault"),
    [
        (replace(SETTINGS, ar_steps=4), (), "ar_steps is 4; a next-scale model needs one a scale: 3"),
        (replace(SETTINGS, order="random"), (), "order is 'random'; a next-scale model goes coarse to fine"),
        (SETTINGS, (True, *(False,) * 13), "cannot go on from kept tokens: no editing"),
    ],
)
def test_sampling_that_it_cannot_do_is_refused(settings, kept, fault):
    with pytest.raises(InputError, match=fault):
        settings.check(SHAPE, kept)


def test_trunk_head_and_tokens_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"trunk.kind causal: this trunk predicts tokens of one grid, but the tokenizer"
    ):
        replace(SHAPE, trunk=CausalTrunk()).check()
    with pytest.raises(ValueError, match=r"trunk.kind next-scale: this trunk predicts codes at several scales, but"):
        replace(SHAPE, tokens=CodeTokens(codebook_size=7)).check()
    with pytest.raises(ValueError, match=r"head.kind mixture: this head draws continuous tokens"):
        replace(SHAPE, head=MixtureHead()).check()
    with pytest.raises(ValueError, match=r"trunk.heads 5 does not divide width 32"):
        replace(SHAPE, trunk=replace(TRUNK, heads=5)).check()
    SHAPE.check()
