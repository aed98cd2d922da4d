"""Codebooks and VQ-f16: exact to the arrays of the published code, and a codebook that follows its latents."""

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file

from infra.errors import InputError
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.quantization.codebook import look_up, nearest
from tokenize_jobs.tokenizers.codebook import MovingCodebook
from tokenize_jobs.tokenizers.kl import published_name
from tokenize_jobs.tokenizers.small_vq import SmallVQ, VQShape
from tokenize_jobs.tokenizers.vq import VQ16_CODES, VQLatents, VQTokenizer, filled, new_vq16, read_vq16
from tokenize_jobs.tokens import Codes, PlainLatents

GRADIENTS = 2e-4
"""Of the largest value of a gradient."""


def published_names(levels, blocks, attention):
    """Names of taming's autoencoder with attention at one level."""
    layers = [f"{half}.{end}" for half in ("encoder", "decoder") for end in ("conv_in", "conv_out", "norm_out")]
    layers += ["quant_conv", "post_quant_conv", "quantize.embedding"]
    resnets = [f"{half}.mid.block_{i}" for half in ("encoder", "decoder") for i in (1, 2)]
    resnets += [f"encoder.down.{level}.block.{i}" for level in range(levels) for i in range(blocks)]
    resnets += [f"decoder.up.{level}.block.{i}" for level in range(levels) for i in range(blocks + 1)]
    layers += [
        f"{resnet}.{layer}" for resnet in resnets for layer in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
    ]
    attentions = ["encoder.mid.attn_1", "decoder.mid.attn_1"]
    attentions += [f"encoder.down.{attention}.attn.{i}" for i in range(blocks)]
    attentions += [f"decoder.up.{attention}.attn.{i}" for i in range(blocks + 1)]
    layers += [f"{place}.{layer}" for place in attentions for layer in ("norm", "q", "k", "v", "proj_out")]
    layers += [f"encoder.down.{level}.downsample.conv" for level in range(levels - 1)]
    layers += [f"decoder.up.{level}.upsample.conv" for level in range(1, levels)]
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.fixture
def vq16_file(tmp_path):
    """VQ-f16's file with weights by formula, as the arrays were recorded with."""
    ours = new_vq16().state_dict()
    scale, state = load("vq16_full").meta["codebook_scale"], {}
    for name in published_names(levels=5, blocks=2, attention=4):
        if (renamed := published_name(name, levels=5)) in ours:
            shape = tuple(ours[renamed].shape)
            linear = ".attn" in name and len(shape) == 2
            state[name] = formula_weight(name, (*shape, 1, 1) if linear else shape)
    name = "quantize.embedding.weight"  # an exception to the formula, of the same draws
    state[name] = state[name] / 0.9 * np.sqrt(8) * scale
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {**state, "loss.discriminator.weight": torch.zeros(1)}}, path)
    return str(path)


def test_vq16_gives_the_recorded_codes_and_images(vq16_file):
    golden, tokenizer = load("vq16_full").arrays, VQTokenizer(read_vq16(vq16_file))
    assert (tokenizer.stride, tokenizer.tokens(4)) == (16, Codes(VQ16_CODES, 4, 4))
    with torch.inference_mode():
        assert_reproduced(tokenizer.vq.encoder(golden["images"]), golden["encoder_out"])
        assert_reproduced(tokenizer.latents(golden["images"]), golden["z"])
    codes = tokenizer.encode(golden["images"])
    assert torch.equal(codes.flatten(1), golden["ids"])
    quantised = look_up(codes, tokenizer.codebook)
    assert_reproduced(quantised, golden["quantised"])
    with torch.inference_mode():
        both = 1.25 * torch.nn.functional.mse_loss(tokenizer.latents(golden["images"]), quantised)
    for placed in ("legacy", "fixed"):
        assert_reproduced(both[None], golden[f"{placed}.loss"])
    assert torch.equal(nearest(golden["vectors"], tokenizer.codebook).flatten(1), golden["vectors_ids"])
    assert_reproduced(tokenizer.decode(codes[:, None].float()), golden["decoded"].clamp(-1, 1))
    before = VQLatents(tokenizer.vq)
    assert before.tokens(4) == PlainLatents(8, 4, 4)
    assert torch.equal(before.encode(golden["images"]), tokenizer.latents(golden["images"]))
    assert_reproduced(before.decode(golden["z"]), golden["decoded"].clamp(-1, 1))  # quantised to be decoded


def test_small_vq_gives_the_recorded_arrays_and_the_decoders_gradients():
    golden, vq = load("vq_f16_tiny"), tiny_vq()
    state, arrays = golden.published_state, golden.arrays
    tokenizer = VQTokenizer(filled(vq, state, "vq_f16_tiny"))
    with torch.inference_mode():
        assert_reproduced(vq.encoder(arrays["images"]), arrays["encoder_out"])
        assert_reproduced(tokenizer.latents(arrays["images"]), arrays["z"])
    codes = tokenizer.encode(arrays["images"])
    assert torch.equal(codes.flatten(1), arrays["ids"])
    assert_reproduced(look_up(codes, tokenizer.codebook), arrays["quantised"])
    assert_reproduced(arrays["quantised"], arrays["straight_through"])
    assert_reproduced(tokenizer.decode(codes[:, None].float()), arrays["decoded"].clamp(-1, 1))
    quantised = arrays["quantised"].clone().requires_grad_()
    vq.requires_grad_(requires_grad=True)
    (vq.decoder(vq.post_quant_conv(quantised)) * arrays["upstream"]).sum().backward()
    gradients = {"grad.quantised": quantised.grad}
    for name in ("decoder.conv_out.weight", "post_quant_conv.weight"):
        gradients[f"legacy.grad.{name}"] = vq.get_parameter(published_name(name, levels=3)).grad
    for name, gradient in gradients.items():
        assert (gradient - arrays[name]).abs().max() < GRADIENTS * arrays[name].abs().max(), name


@pytest.mark.parametrize(("commitment", "placed"), [(1.0, "legacy"), (0.25, "fixed")])
def test_fitting_gives_the_recorded_losses_and_gradients(commitment, placed):
    """The released models weigh the commitment 1 and the codebook 0.25 (legacy), the paper the other way round (fixed).

    Here the codebook follows the latents in place of its gradient, which is that of a term of the commitment's weight.
    """
    golden = load("vq_f16_tiny")
    vq, arrays = filled(tiny_vq(), golden.published_state, "vq_f16_tiny"), golden.arrays
    small = SmallVQ(VQShape(stride=4, channels=4, width=8, depth=1, codebook_size=64), 1.0, commitment)
    small.encoder = torch.nn.Sequential(vq.encoder, vq.quant_conv)
    small.decoder = torch.nn.Sequential(vq.post_quant_conv, vq.decoder)
    small.codebook.load_state_dict({"vectors": vq.quantize.embedding.weight, "counts": torch.ones(64)})
    codebook = small.codebook.vectors.requires_grad_()
    decoded, added = small.reconstruct(arrays["images"], np.random.default_rng(0))
    assert_reproduced(decoded.detach(), arrays["decoded"])
    assert_reproduced(1.25 / commitment * added.detach()[None], arrays[f"{placed}.loss"])
    ((decoded * arrays["upstream"]).sum() + added).backward()
    assert torch.equal(codebook, vq.quantize.embedding.weight)
    gradients = {"quantize.embedding.weight": (1.25 / commitment - 1) * codebook.grad}
    for name in ("conv_in.weight", "mid.attn_1.q.weight"):
        gradients[f"encoder.{name}"] = vq.get_parameter(published_name(f"encoder.{name}", levels=3)).grad
    for name in ("decoder.conv_out.weight", "post_quant_conv.weight", "quant_conv.weight", "quant_conv.bias"):
        gradients[name] = vq.get_parameter(published_name(name, levels=3)).grad
    recorded = {name for name in arrays if name.startswith(f"{placed}.grad.")}
    assert recorded == {f"{placed}.grad.{name}" for name in gradients}
    for name, gradient in gradients.items():
        expected = arrays[f"{placed}.grad.{name}"]
        assert (gradient.view_as(expected) - expected).abs().max() < GRADIENTS * expected.abs().max(), name


def tiny_vq():
    """A VQModel of the recorded shape: three levels, attention at the last."""
    return VQModel(
        block_out_channels=(32, 64, 32), layers_per_block=1, norm_num_groups=32, latent_channels=6,
        num_vq_embeddings=64, vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip


def test_vq16_of_other_weights_is_named(tmp_path):
    save_file(load("mar_tiny").published_state, tmp_path / "mar.safetensors")
    with pytest.raises(InputError, match=r"mar\.safetensors: not VQ-f16: \d+ tensors missing, unknown or mis-shaped"):
        read_vq16(str(tmp_path / "mar.safetensors"))


def small_vq():
    return VQModel(
        block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=32, latent_channels=4, num_vq_embeddings=16,
        vq_embed_dim=4, down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip


def test_codebook_of_another_size_is_refused():
    names = published_names(levels=2, blocks=1, attention=1)
    ours = small_vq().state_dict()
    state = {name: ours[published_name(name, 2)] for name in names if published_name(name, 2) in ours}
    assert filled(small_vq(), state, "f") is not None
    state["quantize.embedding.weight"] = torch.zeros(17, 4)
    with pytest.raises(InputError, match=r"f: not VQ-f16: 1 tensors .*quantize\.embedding\.weight"):
        filled(small_vq(), state, "f")


def test_diffusers_folder_is_what_its_config_says(tmp_path):
    model = small_vq().eval()
    model.save_pretrained(tmp_path)
    config = PretrainedTokenizer(kind="diffusers", path=str(tmp_path))
    known, loaded = tokenizers.geometry(config), tokenizers.load("diffusers", str(tmp_path))
    assert (known.stride, known.tokens(4)) == (loaded.stride, loaded.tokens(4)) == (2, Codes(16, 4, 4))
    images = torch.randn(2, 3, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        latents = model.encode(images).latents
        expected = model.quantize(latents)[2][2].view(2, 4, 4)
        decoded = model.decode(latents).sample.clamp(-1, 1)
    assert torch.equal(loaded.encode(images), expected)
    assert_reproduced(loaded.decode(expected[:, None].float()), decoded)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(InputError, match="holds a diffusers AutoencoderKLWan; AutoencoderKL, VQModel, Auto"):
        tokenizers.geometry(config)


def test_codebook_finds_the_clusters_of_its_latents():
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    draws, codebook = np.random.default_rng(0), MovingCodebook(6, 2, 0.9)
    for _ in range(60):
        of = draws.integers(4, size=(2, 5, 5))
        noise = torch.from_numpy(draws.standard_normal((2, 2, 5, 5), dtype=np.float32))
        codebook.follow(look_up(torch.from_numpy(of), centres) + 0.1 * noise, draws)
    nearest_centre = torch.cdist(centres, codebook.vectors).amin(1)
    assert nearest_centre.max() < 0.2
    assert torch.cdist(codebook.vectors, centres).amin(1).max() < 0.6  # none is left behind


def test_nearest_is_the_first_of_equals_and_does_not_depend_on_the_batch():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), codebook).item() == 0
    latents = torch.randn(5, 2, 3, 3)
    one_by_one = torch.cat([nearest(one[None], codebook) for one in latents])
    assert torch.equal(nearest(latents, codebook), one_by_one)


def test_nearest_is_found_in_float32_whatever_the_caller_encodes_in():
    generator = torch.Generator().manual_seed(0)
    codebook, latents = torch.randn(512, 8, generator=generator), torch.randn(4, 8, 16, 16, generator=generator)
    exact = nearest(latents, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(latents, codebook), exact)


def test_vqmodel_with_spatial_norms_decodes_as_diffusers_does():
    torch.manual_seed(0)
    vq = VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=9, norm_type="spatial",
    )  # fmt: skip
    codes, tokenizer = torch.arange(8).view(1, 1, 2, 4), VQTokenizer(vq)
    with torch.inference_mode():
        expected = vq.decode(look_up(codes[:, 0], tokenizer.codebook), force_not_quantize=True).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(codes), expected)
