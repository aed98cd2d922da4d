"""Next-scale prediction is exact to the arrays of the published code."""

import math
from dataclasses import replace

import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.known import Known
from evaluate.sampling.smooth import sample_smooth
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tests.tokenize_jobs.test_multiscale import full_size_state
from tokenize_jobs.tokenizers.var import from_published as from_published_tokenizer
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES
from train.models.build import build_model
from train.models.categorical import filtered
from train.models.published import from_published, recognise, to_published

GRADIENTS = 2e-4
"""Of the largest value of a gradient."""
FILES = ("var_tiny", "var_shared")


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
    smoothed = torch.nn.functional.cross_entropy(logits.detach().mT, codes, label_smoothing=0.1)
    assert_reproduced(smoothed[None], arrays["tf.loss_smoothing01"])
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
    codes, order, hidden = vae["k10.ids"][..., None].float(), torch.arange(680)[None], []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: hidden.append(args[2]))
    condition = model(codes, golden["labels"], torch.zeros(1, dtype=torch.bool), order, 0)
    logits = model.head.logits(condition)
    assert torch.equal(logits.argmax(-1), golden["argmax"])
    assert_reproduced(logits[:, golden["positions"]], golden["logits_at_positions"])
    assert_reproduced(logits.norm(dim=-1), golden["logit_norm_per_token"])
    assert_reproduced(torch.stack([of.abs().mean() for of in hidden]), golden["hidden_mean_abs_per_block"])
    assert_reproduced(hidden[-1][:, golden["positions"]], golden["hidden_last_at_positions"])
    losses = -model.head.log_density(codes[0], condition[0])
    assert_reproduced(losses, golden["loss_per_token"].flatten())
    assert_reproduced(model.head.loss(codes, condition, {}).loss[None], golden["loss"])
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
        last = model.z_proj.vectors(tokens[:, -counts[-1] :, 0].long())
        sums.append(model.z_proj.summed(sums[-1], last, len(counts) - 1))
        assert_reproduced(torch.cat(found, 1), recorded["logits"])
        assert_reproduced(torch.stack(sums), recorded["f_hat"])
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


@torch.no_grad()
def test_smooth_scales_give_the_recorded_logits_filters_and_sums_one_by_one():
    """Each from the recorded sum of the coarser ones: small errors do not grow from scale to scale."""
    golden = load("var_tiny")
    model, codebook = recorded_model(golden), golden.arrays["vae_state.quantize.embedding.weight"]
    for recorded, settings, known in runs(golden, smooth=True):
        labels, null_class, start = recorded["labels"], model.config.num_classes, 0
        vectors = model.class_vectors(labels.clamp(max=null_class - 1), len(labels), labels == null_class)
        state = model.begin(torch.cat([vectors, model.class_vectors(None, len(labels))]), recorded["ids"])
        for scale, count in enumerate(model.counts):
            rows, share = slice(start, start := start + count), scale / (len(model.counts) - 1)
            guidance = settings.cfg_at(scale, 30 - start, 30)
            logits = model.head.logits(*model.next_scale(state).chunk(2), guidance)
            assert_reproduced(logits, recorded["logits"][:, rows])
            kept, theirs = filtered(logits, settings.top_k, settings.top_p), recorded["filtered"][:, rows]
            assert torch.equal(kept.isfinite(), theirs.isfinite())
            assert_reproduced(kept[kept.isfinite()], theirs[kept.isfinite()])
            tau = 0.27 * (1 - 0.95 * share)
            soft = ((theirs * (1 + share) + recorded["gumbel"][:, rows]) / tau).softmax(-1) @ codebook
            if known is not None:
                source = model.z_proj.vectors(known.latents[:, 0, rows, 0])
                soft = torch.where(known.keep[rows, None], source, soft)
            before = recorded["f_hat"][scale - 1] if scale else 0.0
            assert_reproduced(model.z_proj.summed(before, soft, scale), recorded["f_hat"][scale])
            state.features = recorded["f_hat"][scale].repeat(2, 1, 1, 1)


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
