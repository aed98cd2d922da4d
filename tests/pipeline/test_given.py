"""What `mar evaluate` takes beside recipes: registered versions, checkpoints of recipes, and images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluate.config import Sampling
from infra.cluster import Compute
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import location, write_json
from pipeline.given import as_trained_with, measurable_at
from pipeline.measuring import planner
from pipeline.recipes import emoji_32
from tests.pipeline.registered import SAMPLING, registered, write_small
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer
from train.card import MODEL, read_card
from tune.config import NoSweep


@pytest.fixture
def checkpoint(tmp_path):
    """An output root with a checkpoint's artifact, and the fitted tokenizer that it was trained with."""
    root = tmp_path / "out" / "artifacts"
    folder, tokenizer = root / "checkpoint" / "emoji-32" / "0123abcd", root / "tokenizer" / "fit-32" / "89abcdef"
    for path in (folder, tokenizer):
        path.mkdir(parents=True)
    write_small(folder)
    card = json.loads((folder / MODEL).read_text()) | {"tokenizer_kind": "fit", "tokenizer_hash": "89abcdef"}
    (folder / MODEL).write_text(json.dumps(card))
    recipe = replace(emoji_32(), evaluate=replace(emoji_32().evaluate, ceiling=False))
    write_json(folder / "artifact.json", {"step": "checkpoint", "recipe": canonical(recipe, identity=False)})
    write_json(tokenizer / "artifact.json", {"step": "tokenizer", "fingerprint": "89abcdef"})
    write_json(tokenizer / "tokenizer.json", {"stride": 4, "channels": 16})
    return folder, tokenizer, recipe


def test_checkpoint_artifact_is_measured_by_its_own_recipe_with_its_own_tokenizer(checkpoint):
    folder, tokenizer, recipe = checkpoint
    found = measurable_at(str(folder), Compute())
    assert found == replace(
        recipe,
        checkpoint=str(folder),
        tune=NoSweep(),
        tokenizer=PretrainedTokenizer(kind="fitted", path=str(tokenizer)),
    )
    file = as_trained_with(tokenizers.find("fitted", str(tokenizer)), read_card(folder))
    assert (file.kind, file.hash) == ("fit", "89abcdef")
    other = replace(read_card(folder), tokenizer_hash="00000000")
    assert as_trained_with(tokenizers.find("fitted", str(tokenizer)), other).hash != "89abcdef"


def test_checkpoint_whose_tokenizer_is_gone_is_refused(checkpoint):
    folder, tokenizer, _ = checkpoint
    shutil.rmtree(tokenizer)
    with pytest.raises(InputError, match="fit 89abcdef"):
        measurable_at(str(folder), Compute())


def test_checkpoint_whose_tokenizer_was_given_is_measured_by_its_artifact(checkpoint, tmp_path):
    folder, tokenizer, recipe = checkpoint
    given = shutil.move(tokenizer, tmp_path / "elsewhere")
    recipe = replace(recipe, tokenizer=PretrainedTokenizer(kind="fitted", path=str(given)))
    file = tokenizers.find("fitted", str(given))
    card = json.loads((folder / MODEL).read_text()) | {"tokenizer_kind": "fitted", "tokenizer_hash": file.hash}
    (folder / MODEL).write_text(json.dumps(card))
    write_json(folder / "artifact.json", {"step": "checkpoint", "recipe": canonical(recipe, identity=False)})
    found = measurable_at(str(folder), Compute())
    assert found == replace(recipe, checkpoint=str(folder), tune=NoSweep())
    assert as_trained_with(file, read_card(folder)).hash == read_card(folder).tokenizer_hash


@pytest.mark.e2e
def test_registered_version_is_measured_with_the_settings_it_was_registered_with(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    registered(out, f"sqlite:///{out}/mlflow.db")
    for name in ("models:/small@champion", "models:/small/1"):
        found = measurable_at(name, Compute(out=str(out)))
        assert found.evaluate.generate.sampling == SAMPLING != Sampling()
        assert found.tokenizer == PretrainedTokenizer(kind="pixels")
        assert read_card(location(found.checkpoint)).classes == ("a", "b", "c", "d", "e")
        assert str(found.checkpoint).startswith(str(out))
    for name in ("models:/small@other", "models:/other@champion", "models:/small/7", "models:/small"):
        with pytest.raises(InputError, match=name):
            measurable_at(name, Compute(out=str(out)))


def test_images_are_measured_at_their_own_size_against_the_given_ones(tmp_path):
    for name, size in (("samples", 16), ("real", 40)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = measurable_at(str(tmp_path / "samples"), Compute())
    with pytest.raises(InputError, match=r"--images\.path"):
        planner(found, Compute(out=str(tmp_path / "out"))).plan()
    found = replace(found, images=replace(found.images, path=str(tmp_path / "real")))
    plan = planner(found, Compute(out=str(tmp_path / "out"))).plan()
    assert list(plan.steps) == ["reference", "evaluation"]
    assert plan.steps["reference"].config["image_size"] == 16
    before = plan.steps["evaluation"].fingerprint
    (tmp_path / "samples" / "2.png").unlink()
    assert planner(found, Compute(out=str(tmp_path / "out"))).plan().steps["evaluation"].fingerprint != before


def test_path_where_nothing_lies_is_named(tmp_path):
    with pytest.raises(InputError, match="neither a model's directory nor images"):
        measurable_at(str(tmp_path / "nowhere"), Compute())
