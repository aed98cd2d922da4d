"""A training that starts from a model: its weights are there, its content identifies the training, misfits are named."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file

from infra.cluster import Compute
from infra.errors import InputError
from infra.storage import location
from pipeline.plan import Planner
from pipeline.recipes import emoji_32
from tests.small_model import randomised, small
from tokenize_jobs.config import PretrainedTokenizer, Tokenize
from train.card import EMA_WEIGHTS, WEIGHTS, ModelCard
from train.checkpoint import new_model, write_model
from train.models.config import Architecture
from train.start import Start, initial_model
from tune.config import NoSweep

SHAPE = small()
HASH = "pixels"


@pytest.fixture
def folder(tmp_path):
    """A model directory with raw weights of seed 1 and averaged ones of seed 2."""
    card = ModelCard(
        model=SHAPE, latent_scale=0.5, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash=HASH,
        train_steps=7, images_seen=7, ema_decay=0.9,
    )  # fmt: skip
    write_model(tmp_path / "model", card, randomised(SHAPE, 1).state_dict(), randomised(SHAPE, 2).state_dict())
    return location(tmp_path / "model")


@pytest.mark.parametrize(("weights", "file"), [("ema", EMA_WEIGHTS), ("raw", WEIGHTS)])
def test_first_step_finds_the_chosen_weights(weights, file, folder):
    start = Start(folder, weights)
    start.check(SHAPE, HASH)
    found, written = initial_model(SHAPE, 3, start).state_dict(), load((folder / file).read_bytes())
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in found)
    assert all(parameter.requires_grad for parameter in initial_model(SHAPE, 3, start).parameters())


def test_other_classes_have_a_new_embedding_and_everything_else_is_kept(folder):
    shape, start = replace(SHAPE, num_classes=9), Start(folder, "ema")
    start.check(shape, HASH)
    found, fresh = initial_model(shape, 3, start).state_dict(), new_model(shape, 3).state_dict()
    written = load((folder / EMA_WEIGHTS).read_bytes())
    assert torch.equal(found.pop("class_emb.weight"), fresh["class_emb.weight"])
    assert all(torch.equal(found[name], written[name]) for name in found)
    assert "9 classes instead of 5" in start.told(shape)
    assert "embedding" not in start.told(SHAPE)


def other_heads():
    return replace(SHAPE, trunk=replace(SHAPE.trunk, decoder_heads=2))


def wider():
    return replace(SHAPE, trunk=replace(SHAPE.trunk, encoder_width=64))


@pytest.mark.parametrize(
    ("shape", "tokenizer", "named"),
    [
        (replace(SHAPE, latent_size=8), HASH, "latent_size is 4, the latents' 8"),
        (replace(SHAPE, latent_channels=4), HASH, "latent_channels is 3"),
        (replace(SHAPE, patch_size=2), HASH, "patch_size is 1"),
        (SHAPE, "0123", "tokenizer pixels pixels, these are of 0123"),
        (other_heads(), HASH, "--train.model.trunk.decoder-heads 4"),
        (wider(), HASH, r"mis-shaped \(.*expected"),
        (Architecture(trunk=SHAPE.trunk, head=replace(SHAPE.head, depth=3)).on(
            latent_size=4, latent_channels=3, num_classes=5), HASH, r"missing \(head.net.res_blocks.2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_runs(shape, tokenizer, named, folder):
    with pytest.raises(InputError, match=named) as refused:
        Start(folder, "ema").check(shape, tokenizer)
    assert "--train.start-from" in str(refused.value)


def test_package_without_raw_weights_and_a_torn_file_are_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=WEIGHTS):
        Start(folder, "raw").check(SHAPE, HASH)
    (folder / EMA_WEIGHTS).write_bytes((folder / EMA_WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match=EMA_WEIGHTS):
        Start(folder, "ema").check(SHAPE, HASH)


@pytest.mark.parametrize("kind", ["random-causal", "pixelcnn", "rnn"])
def test_model_of_another_kind_of_trunk_is_refused_by_its_tensors(kind, folder):
    shape = small(kind)
    shape = replace(shape, trunk=replace(shape.trunk, heads=2)) if kind == "random-causal" else shape
    with pytest.raises(InputError, match=r"tensors do not fit: .*missing"):
        Start(folder, "ema").check(shape, HASH)


@pytest.mark.parametrize("classes", [5, 9])
@pytest.mark.parametrize("embedding", [None, (5, 16), (7, 32)])
def test_class_embedding_that_is_not_the_models_own_is_refused_like_any_tensor(embedding, classes, folder):
    state = load_file(folder / EMA_WEIGHTS)
    del state["class_emb.weight"]
    save_file(
        state if embedding is None else {**state, "class_emb.weight": torch.zeros(embedding)}, folder / EMA_WEIGHTS
    )
    with pytest.raises(InputError, match=r"class_emb\.weight"):
        Start(folder, "ema").check(replace(SHAPE, num_classes=classes), HASH)


def test_weights_that_are_cut_short_anywhere_are_refused_before_they_are_read(folder):
    file = folder / EMA_WEIGHTS
    whole = file.read_bytes()
    for left in (*np.random.default_rng(0).integers(len(whole), size=20).tolist(), len(whole) - 1):
        file.write_bytes(whole[:left])
        with pytest.raises(InputError, match=EMA_WEIGHTS):
            Start(folder, "ema").check(SHAPE, HASH)


def test_training_is_identified_by_the_content_of_what_it_starts_from(folder, tmp_path):
    def checkpoint(start_from, weights="ema"):
        recipe = replace(emoji_32(), tokenizer=PretrainedTokenizer(kind="pixels"), tokenize=Tokenize(image_size=4))
        train = replace(recipe.train, start_from=str(start_from), start_weights=weights)
        return Planner(replace(recipe, train=train, tune=NoSweep()), Compute(out=str(tmp_path / "out"))).plan()

    shutil.copytree(folder, tmp_path / "elsewhere")
    random, here, there, raw = (
        checkpoint(*of).steps["checkpoint"].fingerprint
        for of in (("",), (folder,), (tmp_path / "elsewhere",), (folder, "raw"))
    )
    assert here == there
    state = load_file(folder / EMA_WEIGHTS)
    state["fake_latent"][0, 0] += 1
    save_file(state, folder / EMA_WEIGHTS)
    assert len({random, here, raw, checkpoint(folder).steps["checkpoint"].fingerprint}) == 4
    with pytest.raises(InputError, match=r"--train\.start-from"):
        checkpoint(folder).check(["checkpoint"], 1)


def test_damaged_header_of_the_weights_is_refused_wherever_it_was_hit(folder):
    file, random = folder / EMA_WEIGHTS, np.random.default_rng(0)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(100):
        at = int(random.integers(8 if number % 3 else header))  # the header's length, and all of it
        hit = [bytes([whole[at] ^ int(random.integers(1, 256))]), b"", random.bytes(5) + whole[at : at + 1]][number % 3]
        file.write_bytes(whole[:at] + hit + (whole[at + 1 :] if hit else b""))
        with pytest.raises(InputError, match=EMA_WEIGHTS):
            initial_model(SHAPE, 3, checked(Start(folder, "ema")))


def checked(start):
    start.check(SHAPE, HASH)
    return start


@pytest.mark.parametrize("name", ["train_steps", "checkpoint_every", "log_every", "grad_clip", "max_skipped_steps"])
def test_zero_steps_are_refused_before_any_worker_starts(name):
    train = replace(emoji_32().train, **{name: 0})
    model = small()
    with pytest.raises(InputError, match=f"--train.{name.replace('_', '-')} 0 must be above 0"):
        train.check(model)
