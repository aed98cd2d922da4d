"""Published checkpoints: in, sampled, and out again; what does not fit is named."""

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import InputError
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tokenize_jobs.tokenizers.kl import KLTokenizer, new_kl16, read_kl16
from tokenize_jobs.tokens import GaussianLatents


def kl16_published_names():
    """Published names and shapes of KL-16, from ours by undoing the renaming."""
    from tokenize_jobs.tokenizers.kl import published_name

    names = [f"{half}.{end}.{kind}" for half in ("encoder", "decoder") for end in ("conv_in", "conv_out", "norm_out")
             for kind in ("weight", "bias")]  # fmt: skip
    names += [f"{conv}.{kind}" for conv in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")]
    blocks = [f"{half}.mid.block_{i}" for half in ("encoder", "decoder") for i in (1, 2)]
    blocks += [f"encoder.down.{level}.block.{i}" for level in range(5) for i in range(2)]
    blocks += [f"decoder.up.{level}.block.{i}" for level in range(5) for i in range(3)]
    names += [
        f"{b}.{layer}.{kind}"
        for b in blocks
        for layer in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
        for kind in ("weight", "bias")
    ]
    attentions = ["encoder.mid.attn_1", "decoder.mid.attn_1", "encoder.down.4.attn.0", "encoder.down.4.attn.1"]
    names += [
        f"{a}.{layer}.{kind}"
        for a in attentions
        for layer in ("norm", "q", "k", "v", "proj_out")
        for kind in ("weight", "bias")
    ]
    names += [f"encoder.down.{level}.downsample.conv.{kind}" for level in range(4) for kind in ("weight", "bias")]
    names += [f"decoder.up.{level}.upsample.conv.{kind}" for level in range(1, 5) for kind in ("weight", "bias")]
    ours = new_kl16().state_dict()
    shapes = {}
    for name in names:
        if published_name(name, levels=5) in ours:
            shape = tuple(ours[published_name(name, levels=5)].shape)
            linear = ".attn" in name and len(shape) == 2 and name.endswith("weight")
            shapes[name] = (*shape, 1, 1) if linear else shape
    return shapes


def test_kl16_formula_weights_give_the_recorded_moments_and_images(tmp_path):
    golden = load("kl16_full").arrays
    state = {name: formula_weight(name, shape) for name, shape in kl16_published_names().items()}
    assert len(state) == 312
    torch.save({"model": state}, tmp_path / "kl16.ckpt")
    tokenizer = KLTokenizer(read_kl16(str(tmp_path / "kl16.ckpt")))
    assert (tokenizer.stride, tokenizer.tokens(4)) == (16, GaussianLatents(16, 4, 4))
    moments = tokenizer.encode(golden["images"])
    assert_reproduced(moments, golden["moments"])
    decoded = tokenizer.vae.decode(moments.chunk(2, 1)[0]).sample.detach()
    assert_reproduced(decoded, golden["decoded_from_mean"])


def test_kl16_other_weights_are_named(tmp_path):
    official = load("mar_tiny").published_state
    save_file(official, tmp_path / "mar.safetensors")
    with pytest.raises(InputError, match="not KL-16: 312 tensors missing"):
        read_kl16(str(tmp_path / "mar.safetensors"))
