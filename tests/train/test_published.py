"""Published checkpoints: in, sampled, and out again; what does not fit is named."""

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import InputError
from pipeline.published import Export, Import, export_checkpoint, import_checkpoint
from tests.golden_arrays import assert_reproduced, formula_weight, load
from tokenize_jobs.tokenizers.kl import KLTokenizer, new_kl16, read_kl16
from train.checkpoint import read_card, read_model


@pytest.fixture
def official():
    return load("mar_tiny").official_state


def test_import_then_export_gives_the_same_tensors(tmp_path, official):
    file = tmp_path / "checkpoint-last.pth"
    torch.save({"model": official, "model_ema": official, "args": argparse.Namespace(model="mar_tiny")}, file)
    told = import_checkpoint(Import(file=str(file), tokenizer="pixels", out=str(tmp_path / "model"), heads=4))
    assert "head 2 x 32" in told
    card = read_card(tmp_path / "model")
    assert (card.model.num_tokens, card.model.token_channels, card.model.buffer_size) == (16, 4, 4)
    export_checkpoint(Export(model=str(tmp_path / "model"), file=str(tmp_path / "out.safetensors")))
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() == official.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in official.items())
    export_checkpoint(Export(model=str(tmp_path / "model"), file=str(tmp_path / "out.pth")))
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == {"model", "model_ema"}
    assert read_model(tmp_path / "model", ema=False).config == card.model


def test_import_missing_and_misshaped_tensors_are_named(tmp_path, official):
    broken = dict(official)
    del broken["decoder_norm.bias"]
    broken["z_proj.bias"] = torch.zeros(7)
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(
        InputError,
        match=r"broken.safetensors.*1 missing \(decoder_norm.bias\).*z_proj.bias is \(7,\).*looks most like MAR-B",
    ):
        import_checkpoint(
            Import(file=str(tmp_path / "broken.safetensors"), tokenizer="pixels", out=str(tmp_path / "m"), heads=4)
        )
    assert not (tmp_path / "m").exists()


def test_import_pickle_with_code_is_refused_unexecuted(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="would execute code"):
        import_checkpoint(Import(file=str(tmp_path / "evil.pth"), tokenizer="pixels", out=str(tmp_path / "m")))
    assert not (tmp_path / "executed").exists()


def kl16_official_names():
    """Published names and shapes of KL-16, from ours by undoing the renaming."""
    from tokenize_jobs.tokenizers.kl import kl16_name

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
        if kl16_name(name) in ours:
            shape = tuple(ours[kl16_name(name)].shape)
            linear = ".attn" in name and len(shape) == 2 and name.endswith("weight")
            shapes[name] = (*shape, 1, 1) if linear else shape
    return shapes


def test_kl16_formula_weights_give_the_recorded_moments_and_images(tmp_path):
    golden = load("kl16_full").arrays
    state = {name: formula_weight(name, shape) for name, shape in kl16_official_names().items()}
    assert len(state) == 312
    torch.save({"model": state}, tmp_path / "kl16.ckpt")
    tokenizer = KLTokenizer(read_kl16(str(tmp_path / "kl16.ckpt")))
    assert (tokenizer.stride, tokenizer.channels) == (16, 16)
    moments = tokenizer.encode(golden["images"])
    assert_reproduced(moments, golden["moments"])
    decoded = tokenizer.vae.decode(moments.chunk(2, 1)[0]).sample.detach()
    assert_reproduced(decoded, golden["decoded_from_mean"])


def test_kl16_other_weights_are_named(tmp_path, official):
    save_file(official, tmp_path / "mar.safetensors")
    with pytest.raises(InputError, match="not KL-16: 312 tensors missing"):
        read_kl16(str(tmp_path / "mar.safetensors"))
