"""RECIPE|MODEL [flags]: draw images of chosen classes, or edit one

With the checkpoint of a recipe, with a registered model, or with any model directory and its tokenizer:

    mar sample models:/mar-emoji-32@champion --classes 0 1
    mar sample ./model --tokenizer kl16:/weights/kl16.ckpt --classes 207 --sampling.cfg-scale 2.9
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate.config import Sampling
from evaluate.grid import sample_grid
from evaluate.sampling.generate import Generator
from evaluate.sampling.known import Known, known_from_pictures
from infra.artifact import RECORD
from infra.cluster import Compute, tracking_uri
from infra.console import say
from infra.errors import InputError
from infra.from_json import from_json
from infra.storage import local_root, location
from pipeline.flags import parse
from pipeline.make import resolved
from pipeline.own_images import SIZES, Budget, sketch
from pipeline.plan import Planner
from pipeline.recipe import Recipe
from pipeline.steps import Plan
from pipeline.target import is_recipe, recipe_at
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer, TokenizerFile
from tokenize_jobs.sources.imagenet import spoken
from tokenize_jobs.sources.listing import ImageFiles, Images
from train.card import is_model_directory, read_card

_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An image to repaint in part, as another class if wanted: in-painting, out-painting, class-conditional editing."""

    image: str = ""
    """Image file; it is cropped as for tokenization."""
    mask: str = ""
    """Image file of the same shape: white is repainted, black is kept. A token is kept when all of it is black."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which images to draw, and how."""

    classes: tuple[int, ...] = ()
    """Class labels to draw; none means the first ten."""
    per_class: int = 8
    """Images of each class."""
    seed: int = 0
    """Seed of the images; image i of a seed is always the same."""
    raw_weights: bool = False
    """Sample the raw weights instead of the averaged ones."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the images are drawn."""
    no_class: bool = False
    """Draw without a class, by the null class of training; --per-class is then the number of images."""
    smooth: bool = False
    """Draw a next-scale model's pictures from soft codes (VAR's more_smooth): nicer to look at, and never measured."""
    edit: Edit = field(default_factory=Edit)
    """Repaint a part of an image instead of drawing whole ones."""
    tokenizer: PretrainedTokenizer = field(default_factory=PretrainedTokenizer)
    """The tokenizer of a model directory; a recipe knows its own."""
    to: str = "samples"
    """Folder for the PNG files and grid.png."""
    compute: Compute = field(default_factory=Compute)
    """Where the recipe's artifacts are."""


@dataclass(frozen=True, kw_only=True)
class OwnDraw(Draw):
    """Which images to draw of a recipe for your own images, and how."""

    images: ImageFiles = field(default_factory=ImageFiles)
    """The pictures that the recipe was run with."""
    budget: Budget = "hour"
    """The budget that the recipe was run with."""


@dataclass(frozen=True)
class Sampled:
    """A model directory, its tokenizer, and how it samples unless told otherwise."""

    model: str
    tokenizer: TokenizerFile
    sampling: Sampling
    use_ema: bool = True


def main(words: list[str]) -> None:
    """Draw the images and say where they are."""
    target = words[0]
    if target in SIZES:
        recipe, scanned = _own(target, words[1:])
        default: Draw = OwnDraw(sampling=recipe.evaluate.generate.sampling)
    else:
        recipe, scanned = (recipe_at(target) if is_recipe(target) else None), {}
        default = Draw() if recipe is None else Draw(sampling=recipe.evaluate.generate.sampling)
    subject = _subject(target, recipe, parse(default, words[1:], f"mar sample {target}"), scanned)
    options = parse(replace(default, sampling=subject.sampling), words[1:], f"mar sample {target}")
    say(draw(subject, options))


def _own(name: str, words: list[str]) -> tuple[Recipe, dict[ImageFiles, Images]]:
    """Return the recipe for the pictures and the budget that the flags name, and what was listed for it."""
    options, begun = parse(OwnDraw(), words, f"mar sample {name}"), sketch(name)
    tokenizer = options.tokenizer if options.tokenizer.is_whole else begun.tokenizer
    return resolved(replace(begun, images=options.images, tokenizer=tokenizer), options.budget)


def draw(subject: Sampled, options: Draw) -> str:
    """Write the images; returns a line saying where."""
    generator = Generator(subject.model, subject.tokenizer, use_ema=subject.use_ema and not options.raw_weights)
    names = spoken(generator.card.classes)
    labels = _labels(options, generator.card.model.num_classes)
    images = _images(generator, labels, options)
    folder = Path(options.to)
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:06d}-class{labels[index // options.per_class]}.png")
    shown = [names[label] if isinstance(label, int) and label < len(names) else str(label) for label in labels]
    rows = images.reshape(len(labels), options.per_class, *images.shape[1:])
    picture = sample_grid(
        lambda index: rows[index % len(rows), index // len(rows)], len(images), shown, options.per_class
    )
    picture.save(folder / "grid.png")
    return f"{len(images)} images and grid.png in {folder}"


def _images(generator: Generator, labels: Sequence[int | str], options: Draw) -> np.ndarray:
    """Return the images uint8 (N, H, W, 3), drawn a few at once: an image's draws are its own, whatever its batch."""
    known, count, parts = _known(options.edit, generator), len(labels) * options.per_class, []
    for first in range(0, count, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, count))
        wanted = None if options.no_class else torch.tensor([labels[index // options.per_class] for index in indices])
        given = known and replace(known, latents=known.latents.expand(len(indices), -1, -1, -1))
        parts.append(generator.draw(wanted, indices, options.seed, options.sampling, given, smooth=options.smooth))
    return np.concatenate(parts)


def _labels(options: Draw, count: int) -> Sequence[int | str]:
    """Return the class of each row of the grid. Raises InputError for one that the model does not have."""
    if options.no_class:
        if options.classes:
            raise InputError("--no-class draws without a class, and --classes names some: give one of them")
        return ("none",)
    labels = options.classes or tuple(range(min(10, count)))
    outside = [label for label in labels if not 0 <= label < count]
    if outside:
        raise InputError(f"--classes {outside[0]}: this model has classes 0 to {count - 1}")
    return labels


def _known(edit: Edit, generator: Generator) -> Known | None:
    """Return the tokens of one image that an edit keeps, or None without an edit."""
    if not edit.image and not edit.mask:
        return None
    if not (edit.image and edit.mask):
        raise InputError("--edit.image and --edit.mask go together: the picture, and what of it to repaint (white)")
    return known_from_pictures(
        Path(edit.image), Path(edit.mask), generator.card.model, generator.tokenizer.stride, generator.encode
    )


def _subject(
    target: str, recipe: Recipe | None, options: Draw, scanned: dict[ImageFiles, Images] | None = None
) -> Sampled:
    if recipe is None:
        if target.startswith("models:"):
            return _registered(target, options.compute)
        if not is_model_directory(Path(target)):
            raise InputError(f"{target}: not the directory of a model (no model.json)")
        tokenizer = tokenizers.find(options.tokenizer.kind, options.tokenizer.path)
        return Sampled(target, tokenizer, Sampling.of(read_card(location(target)).model))
    plan = Planner(recipe, options.compute, scanned=scanned).plan()
    if recipe.checkpoint == "" and plan.steps["checkpoint"].find() is None:
        raise InputError(_untrained(target, recipe, plan))
    model = recipe.checkpoint or str(plan.path("checkpoint"))
    generate = recipe.evaluate.generate
    return Sampled(model, plan.tokenizer, generate.sampling, generate.use_ema)


def _untrained(target: str, recipe: Recipe, plan: Plan) -> str:
    """Return what to do where a recipe has no checkpoint: another training of its name may have one."""
    others = list(plan.path("checkpoint").parent.glob(f"*/{RECORD}"))
    newest = max(others, key=lambda path: path.stat().st_mtime, default=None)
    trained = f" Another training of that name is drawn from by `mar sample {newest}`." if newest else ""
    return (
        f"recipe {recipe.name} has no trained checkpoint of just these fields below {plan.root}: `mar train {target}` "
        f"first, with the same flags.{trained} A registered model is drawn from by `mar sample "
        f"models:/mar-{recipe.name}@champion`."
    )


def _registered(uri: str, compute: Compute) -> Sampled:
    """Return what the registered model at models:/NAME@ALIAS samples with. Raises InputError when there is none."""
    from infra.tracking import download_model

    package = download_model(uri, tracking_uri(compute, local_root(compute.out))) / "artifacts" / "package"
    saved = json.loads((package / "sampling.json").read_text())
    tokenizer = saved["tokenizer"]
    file = TokenizerFile(tokenizer["kind"], str(package / tokenizer["file"]) if tokenizer["file"] else "")
    return Sampled(str(package), file, from_json(json.dumps(saved["sampling"]), Sampling, "sampling.json"))
