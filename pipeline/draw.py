"""`mar sample`: draw images of chosen classes from a recipe's checkpoint or from any model directory."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from evaluate.config import Sampling
from evaluate.generate import Generator
from evaluate.grid import grid
from infra.cluster import Compute
from infra.errors import InputError
from pipeline.plan import Planner, local_path
from pipeline.recipes import Recipe
from tokenize_jobs import tokenizers
from tokenize_jobs.config import FitTokenizer, Weights
from train.checkpoint import is_model_directory


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which images to draw, and how."""

    classes: tuple[int, ...] = ()
    """Class labels; none means the first ten."""
    per_class: int = 8
    """Images of each class."""
    seed: int = 0
    """Image i of a seed is always the same."""
    raw_weights: bool = False
    """Sample the raw weights instead of the averaged ones."""
    sampling: Sampling = field(default_factory=Sampling)
    """How."""
    tokenizer: str = ""
    """KIND:PATH of the tokenizer, for a model directory outside a recipe."""
    to: str = "samples"
    """Folder for the PNG files and grid.png."""
    compute: Compute = field(default_factory=Compute)
    """Where the recipe's artifacts are."""


def draw(target: str, recipe: Recipe | None, options: Draw) -> str:
    """Write the images; returns a line saying where. Raises InputError when there is no trained model."""
    model, weights = _subject(target, recipe, options)
    generator = Generator(model, weights, use_ema=not options.raw_weights)
    names = generator.card.classes
    count = generator.card.model.num_classes
    labels = options.classes or tuple(range(min(10, count)))
    outside = [label for label in labels if not 0 <= label < count]
    if outside:
        raise InputError(f"--classes {outside[0]}: this model has classes 0 to {count - 1}")
    wanted = torch.tensor(labels).repeat_interleave(options.per_class)
    images = generator.draw(wanted, range(len(wanted)), options.seed, options.sampling)
    folder = Path(options.to)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(zip(images, wanted.tolist(), strict=True)):
        Image.fromarray(image).save(folder / f"{index:06d}-class{label}.png")
    shown = [names[label] if label < len(names) else str(label) for label in labels]
    grid(images, shown, options.per_class, max(1, 64 // images.shape[1])).save(folder / "grid.png")
    return f"{len(images)} images and grid.png in {folder}"


def _subject(target: str, recipe: Recipe | None, options: Draw) -> tuple[str, Weights]:
    if recipe is None:
        if not is_model_directory(Path(target)):
            raise InputError(f"{target}: not the directory of a model (no model.json)")
        if not options.tokenizer:
            raise InputError("--tokenizer KIND:PATH is needed to decode the samples of a model directory")
        chosen = tokenizers.parse(options.tokenizer)
        return target, Weights(chosen.kind, chosen.path)
    plan = Planner(recipe, options.compute).plan()
    if plan.steps["checkpoint"].find(plan.root) is None:
        raise InputError(
            f"recipe {recipe.name} has no trained checkpoint below {plan.root}: `mar train {target}` first"
        )
    if isinstance(recipe.tokenizer, FitTokenizer):
        weights = Weights("fit", str(local_path(plan.path("tokenizer"))))
    else:
        weights = Weights(recipe.tokenizer.kind, recipe.tokenizer.path)
    return str(plan.path("checkpoint")), weights
