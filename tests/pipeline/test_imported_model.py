"""Published checkpoints from the command line: imported, sampled, edited, evaluated and exported again."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.golden_arrays import formula_weight
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tests.train.test_published import kl16_published_names
from train.models.build import build_model
from train.models.config import Architecture, trunk
from train.models.heads import DiffusionHead
from train.models.published import to_published

pytestmark = pytest.mark.e2e
SHAPE = Architecture(trunk=replace(trunk(64, 2, 1), buffer_size=4), head=DiffusionHead(width=48, depth=2)).on(
    latent_size=4, latent_channels=16, num_classes=3
)
STEPS = ("--{}.ar-steps", "4", "--{}.diffusion-steps.first", "5", "--{}.diffusion-steps.last", "5")


def steps(prefix):
    return tuple(word.format(prefix) for word in STEPS)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files in the published layouts: a small MAR on 64 px images as the training script saves it, and KL-16."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    official = to_published(build_model(SHAPE).state_dict(), SHAPE)
    torch.save({"model": official, "model_ema": official, "args": argparse.Namespace(epochs=1)}, folder / "mar.pth")
    kl16 = {name: formula_weight(name, shape) for name, shape in kl16_published_names().items()}
    torch.save({"model": kl16}, folder / "kl16.ckpt")
    return folder, official


@pytest.fixture(scope="module")
def model(published, mar_here):
    folder, _ = published
    tokenizer = f"kl16:{folder / 'kl16.ckpt'}"
    done = mar_here("import", str(folder / "mar.pth"), "--tokenizer", tokenizer, "--to", str(folder / "model"))
    assert done.returncode == 0, done.stderr
    assert "head 2 x 48, 16 tokens of 16, 3 classes" in done.stdout
    other = mar_here("import", str(folder / "mar.pth"), "--tokenizer", "pixels", "--to", str(folder / "other"))
    assert "not the tokens of this model" in other.stderr
    assert not (folder / "other").exists()
    return folder / "model", tokenizer


def test_imported_model_is_sampled_and_exported_unchanged(published, model, mar_here, tmp_path):
    _, official = published
    directory, tokenizer = model
    common = ("sample", str(directory), "--tokenizer", tokenizer, *steps("sampling"))
    done = mar_here(*common, "--per-class", "2", "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*-class*.png"))) == 6
    assert np.asarray(Image.open(tmp_path / "000000-class0.png")).shape == (64, 64, 3)
    done = mar_here("export", str(directory), "--to", str(tmp_path / "again.safetensors"))
    assert done.returncode == 0, done.stderr
    exported = load_file(tmp_path / "again.safetensors")
    assert exported.keys() == official.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in official.items())


def test_image_is_edited_where_the_mask_is_white(model, mar_here, tmp_path):
    directory, tokenizer = model
    picture, mask = np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8), np.zeros((70, 64), np.uint8)
    mask[:, 40:] = 255  # two of the four columns of tokens, touched in part or whole
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = ("--edit.image", str(tmp_path / "picture.png"), "--edit.mask", str(tmp_path / "mask.png"))
    common = (
        "sample",
        str(directory),
        "--tokenizer",
        tokenizer,
        "--classes",
        "1",
        "--per-class",
        "1",
        *steps("sampling"),
    )
    done = mar_here(*common, *edit, "--to", str(tmp_path / "edited"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "edited" / "000000-class1.png").exists()

    Image.fromarray(np.zeros((70, 64), np.uint8)).save(tmp_path / "mask.png")
    done = mar_here(*common, *edit, "--to", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "keeps every token" in done.stderr
    Image.fromarray(mask[:64]).save(tmp_path / "mask.png")
    done = mar_here(*common, *edit, "--to", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "mask.png is 64x64 pixels, the image 64x70" in done.stderr
    done = mar_here(*common, *edit[:2], "--to", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "go together" in done.stderr


def test_imported_model_is_evaluated_and_recorded(model, mar_on_head, mar_here, tmp_path):
    directory, tokenizer = model
    real = tmp_path / "real"
    real.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    write_tar(
        real / "a.tar",
        [
            (f"{i}.{s}", c)
            for i, p in enumerate(pictures)
            for s, c in (("png", encoded(Image.fromarray(p))), ("cls", b"1"))
        ],
    )
    words = (
        "evaluate", str(directory), "--images.path", str(real), "--tokenizer", tokenizer, "--compute.out", str(tmp_path / "out"),
        "--reference.features.name", "efficientnet-lite0", "--evaluate.generate.images", "12",
        "--evaluate.generate.batch-size", "6", *steps("evaluate.generate.sampling"),
    )  # fmt: skip
    done = mar_on_head(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "FD (efficientnet-lite0, 12)" in done.stdout
    (record,) = (tmp_path / "out" / "artifacts" / "evaluation").rglob("artifact.json")
    measured = json.loads(record.read_text())["result"]
    assert measured["numbers"]["fd"] > 0
    assert measured["conditions"]["reference_images"] == 24
    assert (record.parent / "grid.png").exists()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'out'}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mar-pipeline"]
    fds = [run.data.metrics["fd"] for run in client.search_runs([experiment.experiment_id]) if "fd" in run.data.metrics]
    assert fds
    assert set(fds) == {measured["numbers"]["fd"]}
    again = mar_here(*words)
    assert "cached" in again.stdout, again.stderr
