"""Published checkpoints: in and out again; what does not fit is named."""

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import InputError
from pipeline.commands.export import Export, export_checkpoint
from pipeline.commands.import_ import Import, import_checkpoint
from tests.golden_arrays import load
from tokenize_jobs.config import PretrainedTokenizer
from train.card import read_card
from train.checkpoint import read_model

PIXELS = PretrainedTokenizer(kind="pixels")


@pytest.fixture
def official():
    return load("mar_tiny").published_state


def test_import_then_export_gives_the_same_tensors(tmp_path, official):
    file = tmp_path / "checkpoint-last.pth"
    torch.save({"model": official, "model_ema": official, "args": argparse.Namespace(model="mar_tiny")}, file)
    told = import_checkpoint(str(file), Import(tokenizer=PIXELS, to=str(tmp_path / "model"), heads=4))
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
