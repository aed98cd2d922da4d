"""Which artifacts a recipe asks for, before anything runs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from infra.cluster import Compute
from infra.errors import InputError
from pipeline.plan import Planner
from pipeline.recipes import imagenet_256_mar_b, imagenet_256_mar_l, own_images
from tokenize_jobs.config import PretrainedTokenizer, Tokenize
from tokenize_jobs.sources.listing import ImageFiles, scan


@pytest.fixture
def images(tmp_path):
    """Folders of two classes, to train on and held out."""
    for split in ("train", "heldout"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "x.png")
    return ImageFiles(path=str(tmp_path / "train"), heldout_path=str(tmp_path / "heldout"))


def plan(recipe, images, root, size=16, latents=""):
    recipe = replace(
        recipe, images=images, tokenizer=PretrainedTokenizer(kind="pixels"), tokenize=Tokenize(image_size=size)
    )
    return Planner(recipe, Compute(out=str(root), latents=latents)).plan()


def test_recipes_and_own_images_ask_for_the_same_latents_when_they_are_the_same(images, tmp_path):
    base, large = (plan(recipe(), images, tmp_path) for recipe in (imagenet_256_mar_b, imagenet_256_mar_l))
    assert base.path("latents") == large.path("latents")
    assert base.path("checkpoint") != large.path("checkpoint")
    assert plan(own_images(images.path), images, tmp_path).path("latents") == base.path("latents")
    assert plan(imagenet_256_mar_b(), images, tmp_path, size=8).path("latents") != base.path("latents")


def test_latents_can_lie_in_a_bucket_and_nothing_else(images, tmp_path):
    split = plan(imagenet_256_mar_b(), images, tmp_path, latents="memory://shared")
    assert str(split.path("latents")).startswith("memory://shared/artifacts/latents/pixels-16/")
    assert split.path("checkpoint") == plan(imagenet_256_mar_b(), images, tmp_path).path("checkpoint")
    with pytest.raises(InputError, match=r"--compute\.latents"):
        plan(imagenet_256_mar_b(), images, "memory://shared")


def test_classes_are_part_of_a_sources_identity(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    assert scan(str(tmp_path), 2).digest != scan(str(tmp_path), 3).digest
