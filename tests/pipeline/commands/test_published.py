"""Published checkpoints: in and out again; what does not fit is named."""

import argparse
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import location, write_json
from pipeline.commands.export import Export, export_checkpoint
from pipeline.commands.import_ import Import, import_checkpoint
from pipeline.recipes import emoji_32
from tests.golden_arrays import load
from tests.small_model import small, written
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.tokenizers.small import Shape
from tokenize_jobs.tokenizers.small_kl import SmallKL
from tokenize_jobs.tokenizers.small_multiscale import MultiScaleShape, SmallMultiScale
from train.card import EMA_WEIGHTS, WEIGHTS, read_card
from train.checkpoint import read_model

PIXELS = PretrainedTokenizer(kind="pixels")


@pytest.fixture
def official():
    return load("mar_tiny").published_state


def test_import_then_export_gives_the_same_tensors(tmp_path, official):
    file = tmp_path / "checkpoint-last.pth"
    torch.save({"model": official, "model_ema": official, "args": argparse.Namespace(model="mar_tiny")}, file)
    with pytest.raises(InputError, match="3 x 4 x 4, deterministic of an image, not the tokens of this model"):
        import_checkpoint(str(file), Import(tokenizer=PIXELS, to=str(tmp_path / "refused"), heads=4))
    SmallKL(Shape(stride=4, channels=4, width=8, depth=1)).write(tmp_path / "tokenizer")
    tokenizer = PretrainedTokenizer(kind="fitted", path=str(tmp_path / "tokenizer"))
    told = import_checkpoint(str(file), Import(tokenizer=tokenizer, to=str(tmp_path / "model"), heads=4))
    assert "head 2 x 32" in told
    card = read_card(tmp_path / "model")
    assert (card.model.num_tokens, card.model.token_channels, card.model.trunk.buffer_size) == (16, 4, 4)
    export_checkpoint(str(tmp_path / "model"), Export(to=str(tmp_path / "out.safetensors")))
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() == official.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in official.items())
    export_checkpoint(str(tmp_path / "model"), Export(to=str(tmp_path / "out.pth")))
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == {"model", "model_ema"}
    assert read_model(tmp_path / "model", ema=False).config == card.model


def test_mar_goes_out_as_it_is_measured_and_without_the_other_weights(tmp_path):
    config = small(kind="diffusion")
    for folder, missing, use_ema in (("averaged", WEIGHTS, True), ("raw", EMA_WEIGHTS, False)):
        model = tmp_path / folder
        written(model, config)
        trained_by(model, use_ema=use_ema)
        (model / missing).unlink()
        out = tmp_path / f"{folder}.safetensors"
        assert export_checkpoint(str(model), Export(to=str(out))).endswith(f", {folder} weights")
        assert torch.equal(load_file(out)["mask_token"], read_model(model, ema=use_ema).mask_token)
        with pytest.raises(InputError, match="this model has no"):
            export_checkpoint(str(model), Export(to=str(tmp_path / "both.pth")))


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
            str(tmp_path / "broken.safetensors"), Import(tokenizer=PIXELS, to=str(tmp_path / "m"), heads=4)
        )
    assert not (tmp_path / "m").exists()


def test_import_pickle_with_code_is_refused_unexecuted(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="would execute code"):
        import_checkpoint(str(tmp_path / "evil.pth"), Import(tokenizer=PIXELS, to=str(tmp_path / "m")))
    assert not (tmp_path / "executed").exists()


def fitted_scales(folder, channels=8, codes=64):
    """A fitted tokenizer of codes at the scales of the recorded VAR."""
    shape = MultiScaleShape(
        stride=4, channels=channels, width=8, depth=1, codebook_size=codes, scales=(1, 2, 3, 4), phis=4
    )
    tokenizer = SmallMultiScale(shape)
    tokenizer.scales.codebook.vectors.normal_()
    tokenizer.write(folder)
    return PretrainedTokenizer(kind="fitted", path=str(folder))


def test_var_comes_in_with_its_tokenizers_codebook_and_out_again(tmp_path):
    official = load("var_tiny").published_state
    save_file(official, tmp_path / "var.safetensors")
    chosen = Import(tokenizer=fitted_scales(tmp_path / "t"), to=str(tmp_path / "model"))
    assert "next scale 2 x 64, 30 tokens of 1, 5 classes" in import_checkpoint(
        str(tmp_path / "var.safetensors"), chosen
    )
    model = read_model(tmp_path / "model")
    vectors = load_file(tmp_path / "t" / "tokenizer.safetensors")["scales.codebook.vectors"]
    assert torch.equal(model.z_proj.scales.codebook.vectors, vectors)
    assert read_card(tmp_path / "model").latent_scale == 1.0


def trained_by(folder, *, use_ema):
    """Make of a model directory the artifact of a recipe that measures these weights."""
    recipe = emoji_32()
    generate = replace(recipe.evaluate.generate, use_ema=use_ema)
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, generate=generate))
    write_json(location(str(folder)) / "artifact.json", {"recipe": canonical(recipe, identity=False)})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("averaged", [True, False])
def test_var_goes_out_as_one_table_of_the_weights_measured_and_comes_in_again(averaged, suffix, tmp_path):
    official, tokenizer = load("var_tiny").published_state, fitted_scales(tmp_path / "t")
    save_file(official, tmp_path / "var.safetensors")
    import_checkpoint(str(tmp_path / "var.safetensors"), Import(tokenizer=tokenizer, to=str(tmp_path / "model")))
    raw = load_file(tmp_path / "model" / WEIGHTS)
    unmeasured = WEIGHTS if averaged else EMA_WEIGHTS
    save_file({name: of * 0 for name, of in raw.items()}, tmp_path / "model" / unmeasured)
    if not averaged:
        trained_by(tmp_path / "model", use_ema=False)
    out = tmp_path / f"out.{suffix}"
    told = export_checkpoint(str(tmp_path / "model"), Export(to=str(out)))
    assert told.endswith(", averaged weights" if averaged else ", raw weights")
    exported = load_file(out) if suffix == "safetensors" else torch.load(out, weights_only=True)
    assert exported.keys() == official.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in official.items())
    import_checkpoint(str(out), Import(tokenizer=tokenizer, to=str(tmp_path / "again")))
    for name in (WEIGHTS, EMA_WEIGHTS):
        again = load_file(tmp_path / "again" / name)
        assert again.keys() == raw.keys()
        assert all(torch.equal(again[of], raw[of]) for of in raw)


def test_heads_of_a_var_without_temperatures_are_those_given(tmp_path):
    official, tokenizer = load("var_tiny").published_state, fitted_scales(tmp_path / "t")
    save_file({name: of for name, of in official.items() if "scale_mul" not in name}, tmp_path / "var.safetensors")
    for given, heads in ((0, 1), (8, 8)):
        chosen = Import(tokenizer=tokenizer, to=str(tmp_path / f"{given}"), heads=given)
        import_checkpoint(str(tmp_path / "var.safetensors"), chosen)
        assert read_card(tmp_path / f"{given}").model.trunk.heads == heads


def test_var_with_another_tokenizer_or_tensor_is_refused(tmp_path):
    official = load("var_tiny").published_state
    save_file(official, tmp_path / "var.safetensors")
    with pytest.raises(InputError, match="tokenizer pixels : not this model's"):
        import_checkpoint(str(tmp_path / "var.safetensors"), Import(tokenizer=PIXELS, to=str(tmp_path / "m")))
    other = Import(tokenizer=fitted_scales(tmp_path / "t", codes=32), to=str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"tokenizer fitted .*codebook\.vectors"):
        import_checkpoint(str(tmp_path / "var.safetensors"), other)
    save_file(official | {"blocks.1.attn.proj.bias": torch.zeros(3)}, tmp_path / "broken.safetensors")
    with pytest.raises(
        InputError,
        match=r"broken\.safetensors.*1 mis-shaped \(blocks\.1\.attn\.proj\.bias is \(3,\).*VAR-d16: width 64, d",
    ):
        import_checkpoint(str(tmp_path / "broken.safetensors"), other)
    assert not (tmp_path / "m").exists()
