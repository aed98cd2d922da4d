"""Next-scale prediction: exact to the arrays of the published code, and what must hold for any weights."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.known import Known
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from evaluate.sampling.smooth import sample_smooth
from infra.errors import InputError
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tests.small_model import randomised, small, step_loss
from tests.tokenize_jobs.test_multiscale import full_size_state
from tokenize_jobs.tokenizers.var import from_published as from_published_tokenizer
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES
from train.batches import StepInput, training_draws
from train.config import Train
from train.ema import EMA
from train.memory import counted
from train.models.build import build_model
from train.models.categorical import filtered
from train.models.config import Architecture
from train.models.heads import CategoricalHead, MixtureHead
from train.models.published import from_published, recognise, to_published
from train.models.tokens import CodeTokens, MultiScaleTokens
from train.models.trunks import CausalTrunk, NextScaleTrunk
from train.optimizer import Optimization
from train.progress import load_progress, snapshot, write_progress
from train.step import training_step

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


def d16_state():
    """VAR-d16's tensors by formula, with the exceptions that its arrays were recorded with."""
    width, shapes = 1024, {"word_embed.weight": (1024, 32), "head_nm.ada_lin.1.weight": (2048, 1024)}
    shapes |= {"head.weight": (4096, width), "word_embed.bias": (width,), "head_nm.ada_lin.1.bias": (2 * width,)}
    shapes |= {"head.bias": (4096,)}
    layers = {"attn.mat_qkv": (3, 1), "attn.proj": (1, 1), "ffn.fc1": (4, 1), "ffn.fc2": (1, 4), "ada_lin.1": (6, 1)}
    for block in (f"blocks.{n}" for n in range(16)):
        for name, (out, into) in layers.items():
            shapes[f"{block}.{name}.weight"] = (out * width, into * width)
            shapes[f"{block}.{name}.bias"] = (out * width,)
        del shapes[f"{block}.attn.mat_qkv.bias"]
        shapes |= {f"{block}.attn.{name}_bias": (width,) for name in "qv"}
    state = {name: formula_weight(name, shape) for name, shape in shapes.items()}
    tables = {"pos_start": (1, 1), "pos_1LC": (1, 680), "lvl_embed.weight": (10,), "class_emb.weight": (1001,)}
    for name, rows in tables.items():
        shape = (*rows, width)
        state[name] = formula_weight(name, shape) / 0.9 * math.prod(shape[1:]) ** 0.5 * 0.5
    for name in (f"blocks.{n}.attn.scale_mul_1H11" for n in range(16)):
        state[name] = math.log(4) + formula_weight(name, (1, 16, 1, 1)) / 0.9 * 4 * 0.5
    counts = [side**2 for side in PUBLISHED_SCALES[0]]
    return state | {"lvl_1L": torch.arange(10).repeat_interleave(torch.tensor(counts))[None]}


@pytest.mark.chaos  # 310 M numbers to draw
@torch.no_grad()
def test_d16_gives_the_recorded_logits_and_losses():
    golden, vae, state, tokenizer = load("var_d16_full").arrays, load("var_vae_full").arrays, d16_state(), {}
    for name, of in from_published_tokenizer(full_size_state()).items():
        if name.startswith("scales."):
            tokenizer[f"z_proj.{name}"] = of
    model = build_model(recognise(state)).eval()
    assert sum(of.numel() for of in state.values()) - 680 == 310_283_520
    model.load_state_dict(from_published(state) | tokenizer)
    codes, order, means = vae["k10.ids"][..., None].float(), torch.arange(680)[None], []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: means.append(args[2].abs().mean()))
    condition = model(codes, golden["labels"], torch.zeros(1, dtype=torch.bool), order, 0)
    logits = model.head.logits(condition)
    assert torch.equal(logits.argmax(-1), golden["argmax"])
    assert_reproduced(logits[:, golden["positions"]], golden["logits_at_positions"])
    assert_reproduced(torch.stack(means), golden["hidden_mean_abs_per_block"])
    losses = -model.head.log_density(codes[0], condition[0])
    assert_reproduced(losses, golden["loss_per_token"].flatten())
    null = model.training_conditions(codes, model.class_vectors(None, 1), order, 0)
    assert_reproduced(-model.head.log_density(codes[0], null[0]), golden["loss_null_per_token"].flatten())


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


def runs(golden, *, smooth):
    """Of each recorded run: its arrays, our settings, and what an edit keeps."""
    for j, run in enumerate(golden.meta["sampling"]):
        if run["more_smooth"] != smooth:
            continue
        recorded = {name.partition(".")[2]: of for name, of in golden.arrays.items() if name.startswith(f"sample{j}.")}
        settings = Sampling(
            ar_steps=len(golden.meta["config"]["patch_nums"]), order="raster", cfg_scale=1 + run["cfg"],
            cfg_schedule="steps", top_k=run["top_k"], top_p=run["top_p"] or 1.0,
        )  # fmt: skip
        known = None
        if "edit" in run:
            keep = recorded_model(golden).config.tokens.kept(recorded["edit_mask"].bool())
            assert torch.equal(keep, recorded["keep"].bool())
            known = Known(golden.arrays["vq.ids"][:, None, :, None], keep)
        yield recorded, settings, known


@torch.no_grad()
def test_sampling_and_editing_give_the_recorded_logits_filters_and_inputs(golden):
    model = recorded_model(golden)
    counts, null_class = model.config.tokens.together, model.config.num_classes
    for recorded, settings, known in runs(golden, smooth=False):
        codes, labels = recorded["ids"][..., None].float(), recorded["labels"]
        settings.check(model.config, () if known is None else known.keep.tolist())
        tokens = codes if known is None else torch.where(known.keep[:, None], known.latents[:, 0], codes)
        vectors = model.class_vectors(labels.clamp(max=null_class - 1), len(labels), labels == null_class)
        vectors = torch.cat([vectors, model.class_vectors(None, len(labels))])
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


class RecordedGumbel:
    """Draws of a recorded run, as normal numbers: one an image, code and scale."""

    def __init__(self, gumbel, counts):
        self.parts = iter(torch.special.ndtri(torch.exp(-torch.exp(-gumbel.double()))).split(counts, 1))

    def order(self, num_tokens):
        return torch.arange(num_tokens).expand(2, -1)

    def normal(self, draws, rows, channels):
        return next(self.parts)[None]


SMOOTH = 2e-3
"""Of the largest value: tau, by which the softmax divides, falls to 0.0135."""


def test_smooth_pictures_add_up_to_the_recorded_features_edited_ones_too():
    golden = load("var_tiny")
    model, tried = recorded_model(golden), 0
    for recorded, settings, known in runs(golden, smooth=True):
        noise = RecordedGumbel(recorded["gumbel"], list(model.config.tokens.together))
        features = sample_smooth(model, recorded["labels"], noise, settings, known)
        last = recorded["f_hat"][-1]
        assert (features - last).abs().max() < SMOOTH * last.abs().max()
        tried += 1
    assert tried == 2


def test_training_resumed_from_a_checkpoint_ends_with_the_same_bytes_dropped_blocks_too(tmp_path):
    config, scales = Train(lr=1e-2, warmup_steps=0, precision="fp32"), small_var().z_proj.scales.state_dict()
    shape = replace(SHAPE, trunk=replace(TRUNK, drop_path=0.5))

    def start(seed):
        torch.manual_seed(seed)
        model = build_model(shape).train()
        model.z_proj.scales.load_state_dict(scales)
        return model, EMA(model, 0.9), Optimization(model, config)

    def advance(parts, steps):
        for step in steps:
            inputs = StepInput(some_codes(4), torch.arange(4), training_draws(shape, 0, step, range(4)), step)
            training_step(parts[0], *parts, [inputs])

    straight, first, second = start(0), start(0), start(1)
    advance(straight, range(4))
    advance(first, range(2))
    write_progress(tmp_path, snapshot(*first))
    assert load_progress(tmp_path, *second) == 2
    advance(second, range(2, 4))
    for ours, other in ((straight[0], second[0]), (straight[1].model, second[1].model)):
        assert all(torch.equal(of, other.state_dict()[name]) for name, of in ours.state_dict().items())


def test_edit_keeps_codes_of_every_scale_and_draws_the_others_anew():
    model, source = small_var(), some_codes(3, seed=1)[:, None]
    places = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    keep = TOKENS.kept(places)
    assert keep.tolist() == [True, True, False, False, False, *places.flatten().tolist()]
    known, labels, noise = Known(source, keep), torch.tensor([0, 3, 4]), ImageNoise(0, range(3))
    edited, plain = (
        sample(model, labels, noise, SETTINGS, known),
        sample(model, labels, ImageNoise(0, range(3)), SETTINGS),
    )
    assert torch.equal(edited[:, :, keep], source[:, :, keep])
    assert (edited[:, :, ~keep] != source[:, :, ~keep]).any()
    again = sample(model, labels, ImageNoise(0, range(3)), SETTINGS, Known((source + 1) % 7, keep))
    assert (again[:, :, ~keep] != edited[:, :, ~keep]).any(), "what is drawn follows from what is kept"
    assert plain.shape == edited.shape


def test_smooth_pictures_of_other_trunks_are_refused():
    with pytest.raises(InputError, match="--smooth: a masked model adds up no scales"):
        sample_smooth(build_model(small()), None, ImageNoise(0, range(1)), SETTINGS)


def test_memory_of_a_masked_attention_is_counted_as_that_of_a_fused_kernel():
    config = Train(precision="fp32")
    many, few = (counted(SHAPE, config, images, recomputing=False).activations for images in (8, 4))
    assert many < 2 * few < 3 * many


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
