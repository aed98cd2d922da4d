"""Codes at several scales and VAR's tokenizer: exact to the arrays of the published code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from infra.errors import InputError
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.quantization.codebook import Codebook, nearest
from tokenize_jobs.quantization.scales import Scales, phi_of, shrink, split
from tokenize_jobs.tokenizers.small_multiscale import MultiScaleShape, SmallMultiScale
from tokenize_jobs.tokenizers.var import VARTokenizer, filled, read_var16
from tokenize_jobs.tokens import MultiScaleCodes
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES

TEN = PUBLISHED_SCALES[0]
FILES = {
    "var_tiny": {"width": 32, "channels": 8, "codes": 64, "sets": [(1, 2, 3, 4), TEN]},
    "var_shared": {"width": 32, "channels": 8, "codes": 32, "sets": [(1, 2, 4)]},
}


def published_layers():
    """Name and shape of each tensor of encoder and decoder, of width 1."""
    blocks = {}
    for level, (into, out) in enumerate(((1, 1), (1, 1), (1, 2), (2, 2), (2, 4))):
        blocks |= {f"encoder.down.{level}.block.{i}": (into if i == 0 else out, out) for i in range(2)}
    for level, (into, out) in enumerate(((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))):
        blocks |= {f"decoder.up.{level}.block.{i}": (into if i == 0 else out, out) for i in range(3)}
    blocks |= {f"{half}.mid.block_{i}": (4, 4) for half in ("encoder", "decoder") for i in (1, 2)}
    attentions = [f"{half}.mid.attn_1" for half in ("encoder", "decoder")]
    attentions += [f"encoder.down.4.attn.{i}" for i in range(2)] + [f"decoder.up.4.attn.{i}" for i in range(3)]
    return blocks, attentions


def published_shapes(width, channels):
    """Shape of each published tensor of encoder and decoder."""
    blocks, attentions = published_layers()
    convs = {"encoder.conv_in": (3, width, 3), "encoder.conv_out": (4 * width, channels, 3)}
    convs |= {"decoder.conv_in": (channels, 4 * width, 3), "decoder.conv_out": (width, 3, 3)}
    norms = {"encoder.norm_out": 4 * width, "decoder.norm_out": width}
    for name, (into, out) in blocks.items():
        into, out = into * width, out * width
        norms |= {f"{name}.norm1": into, f"{name}.norm2": out}
        convs |= {f"{name}.conv1": (into, out, 3), f"{name}.conv2": (out, out, 3)}
        convs |= {f"{name}.nin_shortcut": (into, out, 1)} if into != out else {}
    for name in attentions:
        norms[f"{name}.norm"] = 4 * width
        convs |= {f"{name}.qkv": (4 * width, 12 * width, 1), f"{name}.proj_out": (4 * width, 4 * width, 1)}
    for level, factor in enumerate((1, 1, 2, 2)):
        convs[f"encoder.down.{level}.downsample.conv"] = (factor * width,) * 2 + (3,)
    for level, factor in zip((1, 2, 3, 4), (1, 2, 2, 4), strict=True):
        convs[f"decoder.up.{level}.upsample.conv"] = (factor * width,) * 2 + (3,)
    shapes = {f"{name}.{kind}": (size,) for name, size in norms.items() for kind in ("weight", "bias")}
    for name, (into, out, kernel) in convs.items():
        shapes |= {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}
    return shapes


def published_state(name):
    """A tokenizer's tensors as its file has them, those of encoder and decoder by formula."""
    golden, sizes = load(name), FILES[name]
    shapes = published_shapes(sizes["width"], sizes["channels"])
    state = {key: formula_weight(key, shape, golden.meta["formula_salt"]) for key, shape in shapes.items()}
    stored = {key.removeprefix("vae_state."): of for key, of in golden.arrays.items() if key.startswith("vae_state.")}
    return {**state, **stored}


@pytest.mark.parametrize("name", FILES)
def test_small_tokenizers_give_the_recorded_codes_sums_and_images(name):
    golden, sizes = load(name).arrays, FILES[name]
    tokenizer, sides = filled(VARTokenizer(**sizes), published_state(name), name), sizes["sets"][0]
    with torch.inference_mode():
        assert_reproduced(tokenizer.encoder(golden["vq.images"]), golden["vq.encoder_out"])
        assert_reproduced(tokenizer.features(golden["vq.images"]), golden["vq.f"])
    codes = tokenizer.encode(golden["vq.images"])
    assert torch.equal(codes, golden["vq.ids"])
    assert tokenizer.tokens(4) == MultiScaleCodes(sizes["codes"], 8, sides, 4)
    sums = list(tokenizer.scales.partial_sums(codes, sides))
    assert_reproduced(torch.stack(sums), golden["vq.f_hat"])
    inputs = [shrink(of, side).flatten(2).mT for of, side in zip(sums, sides[1:], strict=False)]
    assert_reproduced(torch.cat(inputs, 1), golden["vq.var_input"])
    assert_image(tokenizer.decode(codes[:, None, :, None].float()), golden["vq.decoded"])
    if "vq.preview0" in golden:
        assert_image(torch.cat([tokenizer.of_features(of[:1]) for of in sums[:2]])[-2:], golden["vq.preview0"])


def assert_image(ours, recorded):
    """To the tolerance of decoded images."""
    assert (ours - recorded).abs().max() < 5e-5


@pytest.mark.parametrize("name", FILES)
def test_recorded_samples_sum_up_to_the_recorded_inputs_and_images_edited_and_smooth_ones_too(name):
    golden, sizes = load(name), FILES[name]
    tokenizer, sides = filled(VARTokenizer(**sizes), published_state(name), name), sizes["sets"][0]
    for j, run in enumerate(golden.meta["sampling"]):
        recorded = {key.partition(".")[2]: of for key, of in golden.arrays.items() if key.startswith(f"sample{j}.")}
        if "edit" not in run and not run["more_smooth"]:
            assert_reproduced(
                torch.stack(list(tokenizer.scales.partial_sums(recorded["ids"], sides))), recorded["f_hat"]
            )
        inputs = [shrink(of, side).flatten(2).mT for of, side in zip(recorded["f_hat"], sides[1:], strict=False)]
        assert_reproduced(torch.cat(inputs, 1), recorded["next_input"])
        assert_image((tokenizer.of_features(recorded["f_hat"][-1]) + 1) / 2, recorded["image"])


def recorded_scales(golden, codebook="vae_state.quantize.embedding.weight", phis="vae_state.quantize.quant_resi"):
    vectors = golden[codebook]
    convs = sorted({key.rsplit(".", 1)[0] for key in golden if key.startswith(phis)})
    scales = Scales(Codebook(*vectors.shape), len(convs)).requires_grad_(requires_grad=False)
    scales.codebook.vectors.copy_(vectors)
    for phi, name in zip(scales.phis, convs, strict=True):
        phi.load_state_dict({kind: golden[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return scales


@pytest.mark.parametrize("shared", ["share0", "share1", "share2"])
def test_other_numbers_of_phis_give_the_recorded_codes(shared):
    golden = load("var_tiny").arrays
    scales = recorded_scales(golden, phis=f"{shared}.state")
    codes = scales.encode(golden["vq.f"], (1, 2, 3, 4))
    assert torch.equal(codes, golden[f"{shared}.ids"])
    *_, last = scales.partial_sums(codes, (1, 2, 3, 4))
    assert_reproduced(last, golden[f"{shared}.f_hat"])


def test_ten_scales_give_the_recorded_codes_and_sum():
    golden = load("var_tiny").arrays
    scales = recorded_scales(golden)
    codes = scales.encode(golden["k10.f"], TEN)
    assert torch.equal(codes, golden["k10.ids"])
    *before, last = scales.partial_sums(codes, TEN)
    assert_reproduced(last, golden["k10.f_hat"])
    inputs = [shrink(of, side).flatten(2).mT for of, side in zip(before, TEN[1:], strict=True)]
    assert_reproduced(torch.cat(inputs, 1), golden["k10.var_input"])


def test_codes_nearest_by_angle_are_the_recorded_ones_and_add_the_vectors_as_they_are(monkeypatch):
    """The published quantiser can look up by angle; no released tokenizer does, and ours has no such setting."""
    golden, sides = load("var_tiny").arrays, (1, 2, 3, 4)
    scales = recorded_scales(golden)
    monkeypatch.setattr(
        "tokenize_jobs.quantization.scales.nearest", lambda *of: nearest(*(F.normalize(rows, dim=1) for rows in of))
    )
    codes = scales.encode(golden["vq.f"], sides)
    assert torch.equal(codes, golden["znorm.ids"])
    *_, last = scales.partial_sums(codes, sides)
    assert_reproduced(last, golden["znorm.f_hat"])


def test_rectangular_scales_give_the_recorded_codes_and_sum():
    golden, sides = load("var_tiny").arrays, [tuple(side) for side in load("var_tiny").meta["rect_patch_nums"]]
    found = list(recorded_scales(golden).quantised(golden["rect.f"], sides))
    assert torch.equal(torch.cat([codes.flatten(1) for _, codes, _ in found], 1), golden["rect.ids"])
    assert_reproduced(sum(added for *_, added in found), golden["rect.f_hat"])


def test_fitting_gives_the_recorded_loss_and_gradients():
    """The codebook's too, which here follows the latents by moving averages in place of it."""
    golden = load("var_tiny").arrays
    shape = MultiScaleShape(
        stride=2, channels=8, width=8, depth=1, codebook_size=64, scales=(1, 2, 3, 4), phis=4
    )  # fmt: skip
    small = SmallMultiScale(shape, decay=0.99, commitment=0.25)
    small.encoder, small.decoder = torch.nn.Identity(), torch.nn.Identity()
    small.scales.load_state_dict(recorded_scales(golden).state_dict() | {"codebook.counts": torch.ones(64)})
    codebook = small.scales.codebook.vectors.requires_grad_()
    features = golden["vq.f"].clone().requires_grad_()
    decoded, loss = small.reconstruct(features, np.random.default_rng(0))
    assert_reproduced(loss.detach()[None], golden["vqtrain.loss"])
    assert_reproduced(decoded.detach(), golden["vqtrain.f_hat"])
    ((decoded * golden["vqtrain.upstream"]).sum() + loss).backward()
    gradients = {"f": features.grad, "embedding.weight": codebook.grad} | {
        f"quant_resi.qresi_ls.{name}": of.grad for name, of in small.scales.phis.named_parameters()
    }
    assert len(gradients) == 10
    for name, gradient in gradients.items():
        assert_reproduced(gradient, golden[f"vqtrain.grad.{name}"])


def test_phi_of_each_scale_is_the_published_one_in_its_ties_too():
    recorded = load("var_tiny").meta["phi_index"] | load("var_shared").meta["phi_index"]
    assert {"k3", "k4", "k10", "k14", "k10_share5"} <= set(recorded)
    for name, expected in recorded.items():
        scales = len(expected)
        phis = int(name.partition("share")[2] or 4) or scales
        assert [phi_of(scale, scales, phis) for scale in range(scales)] == expected, name


def test_codes_of_a_scale_do_not_depend_on_finer_ones():
    golden, sides = load("var_tiny").arrays, (1, 2, 3, 4)
    scales, codes = recorded_scales(golden), split(golden["vq.ids"], (1, 2, 3, 4))
    alone = [found for _, (_, found, _) in zip(range(2), scales.quantised(golden["vq.f"], sides), strict=False)]
    assert all(torch.equal(found, of) for found, of in zip(alone, codes[:2], strict=True))
    changed = torch.cat([golden["vq.ids"][:, :5], (golden["vq.ids"][:, 5:] + 1) % 64], 1)
    pairs = list(zip(*(scales.partial_sums(of, sides) for of in (golden["vq.ids"], changed)), strict=True))
    assert [torch.equal(*pair) for pair in pairs] == [True, True, False, False]


def full_size_state():
    """VAR's tokenizer's tensors by formula, as its arrays were recorded with."""
    shapes = published_shapes(160, 32) | {
        f"{conv}.{kind}": (32, 32, 3, 3) if kind == "weight" else (32,)
        for conv in ("quant_conv", "post_quant_conv", *(f"quantize.quant_resi.qresi_ls.{i}" for i in range(4)))
        for kind in ("weight", "bias")
    }
    state = {name: formula_weight(name, shape) for name, shape in shapes.items()}
    name = "quantize.embedding.weight"  # an exception to the formula, of the same draws
    state[name] = formula_weight(name, (4096, 32)) / 0.9 * 32**0.5 * load("var_vae_full").meta["codebook_scale"]
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 4096)
    return state


@pytest.mark.chaos  # 108 M numbers to draw
def test_var16_gives_the_recorded_codes_and_images(tmp_path):
    golden = load("var_vae_full").arrays
    torch.save(full_size_state(), tmp_path / "vae_ch160v4096z32.pth")
    tokenizer = read_var16(str(tmp_path / "vae_ch160v4096z32.pth"))
    assert sum(of.numel() for of in tokenizer.state_dict().values()) == 108_948_355
    known = tokenizers.geometry(PretrainedTokenizer(kind="var16", path="f")).of_image(256)
    assert tokenizer.tokens(16) == MultiScaleCodes(4096, 32, TEN, 4) == known
    sides = (1, 2, 3, 4)
    with torch.inference_mode():
        features = tokenizer.features(golden["images"])
    assert_reproduced(features, golden["f"])
    codes = tokenizer.scales.encode(features, sides)
    assert torch.equal(codes, golden["ids"])
    sums = list(tokenizer.scales.partial_sums(codes, sides))
    assert_reproduced(torch.stack(sums), golden["f_hat"])
    assert_image(tokenizer.of_features(sums[-1]), golden["decoded"])
    codes = tokenizer.scales.encode(golden["k10.f"], TEN)
    assert torch.equal(codes, golden["k10.ids"])
    *before, last = tokenizer.scales.partial_sums(codes, TEN)
    assert_reproduced(last, golden["k10.f_hat"])
    inputs = [shrink(of, side).flatten(2).mT for of, side in zip(before, TEN[1:], strict=True)]
    assert_reproduced(torch.cat(inputs, 1), golden["k10.var_input"])


def test_published_file_of_another_family_or_size_is_named(tmp_path):
    save_file(load("mar_tiny").published_state, tmp_path / "mar.safetensors")
    with pytest.raises(InputError, match=r"mar\.safetensors: not VAR's tokenizer: \d+ tensors missing, unknown"):
        read_var16(str(tmp_path / "mar.safetensors"))
    with pytest.raises(InputError, match=r"2 tensors .*codebook\.vectors \(64, 8\), not \(32, 8\)"):
        filled(VARTokenizer(**FILES["var_shared"]), published_state("var_tiny") | {"other.weight": torch.zeros(1)}, "f")
    state = published_state("var_shared") | {"quantize.embedding.weight": torch.zeros(33, 8)}
    with pytest.raises(InputError, match=r"1 tensors .*codebook\.vectors \(33, 8\), not \(32, 8\)"):
        filled(VARTokenizer(**FILES["var_shared"]), state, "f")


def test_feature_map_of_a_side_without_scales_is_refused():
    grid = VARTokenizer(**FILES["var_shared"]).tokens
    with pytest.raises(InputError, match="2 places a side, fewer than the 4 of the finest scale"):
        grid(2)
    with pytest.raises(InputError, match="8 places a side, not the 4"):
        grid(8)


@pytest.fixture
def fast_but_rough():
    """The settings by which a GPU may multiply and convolve in TF32, as they are found by all."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("compiled", [False, True])
def test_quantiser_multiplies_and_convolves_in_float32_whatever_the_caller_allows(
    compiled, fast_but_rough, monkeypatch
):
    convolved, seen = torch.nn.functional.conv2d, []

    def conv2d(*args, **kwargs):
        seen.append([backend.allow_tf32 for backend in fast_but_rough] + [torch.is_autocast_enabled("cpu")])
        return convolved(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    scales = Scales(Codebook(16, 4), 2).requires_grad_(requires_grad=False)
    scales.codebook.vectors.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        codes = scales.encode(torch.randn(2, 4, 4, 4), (1, 2, 4))
        *_, summed = scales.partial_sums(codes, (1, 2, 4))
    assert summed.dtype == torch.float32
    assert seen == [[False] * 3] * 6
    assert all(backend.allow_tf32 for backend in fast_but_rough)
