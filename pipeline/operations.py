"""How many operations each step of a recipe takes, and how many bytes what it makes has.

Two operations a weight and token forwards, twice that backwards; attention's own left out, a masked trunk as if it saw
all tokens in each step; the others keep what they read, and read each token once.
"""

import functools
from typing import NamedTuple

from evaluate.config import Sampling
from pipeline.recipe import Recipe
from tokenize_jobs.config import MOST_FITTED, Fit, FitPCATokenizer
from tokenize_jobs.tokenizers import geometry
from train.models.config import Model
from train.models.heads import DiffusionHead, FlowHead
from tune.config import SamplingSweep

KL_OPERATIONS = 0.276e12 / 256**2
"""Of KL-16's encoder, for an image and its mirror, by pixel."""
_BYTES_A_WEIGHT = 6 * 4  # weights, their average, and both with AdamW's two moments to go on from


def costs(name: str, recipe: Recipe, model: Model | None, images: int | None) -> tuple[float | None, float | None]:
    """Return the operations of a step and the bytes of what it makes."""
    if name == "tokenizer" and isinstance(recipe.tokenizer, Fit):
        return fitted(recipe.tokenizer, recipe.tokenize.image_size, images)
    if model is None:
        return None, None
    if name == "latents" and images is not None:
        is_kl = recipe.tokenizer.kind in ("kl16", "diffusers")
        operations = images * KL_OPERATIONS * recipe.tokenize.image_size**2 if is_kl else None
        kind = geometry(recipe.tokenizer).of_image(recipe.tokenize.image_size)
        return operations, images * 2.0 * kind.bytes
    if name not in ("checkpoint", "sweep", "evaluation") or (
        name == "sweep" and not isinstance(recipe.tune, SamplingSweep)
    ):
        return None, None
    if name == "checkpoint":
        seen = recipe.train.train_steps * recipe.train.batch_size
        found, draws = weights(model), getattr(model.head, "batch_mul", 1)
        per_image = found.trunk * _rows(model) + found.classes + found.head * model.num_tokens * draws
        return seen * 6.0 * per_image, sum(found) * float(_BYTES_A_WEIGHT)
    base = recipe.evaluate.generate.sampling
    swept = recipe.tune if name == "sweep" and isinstance(recipe.tune, SamplingSweep) else None
    settings = swept.planned(base) if swept else [base]
    drawn = _drawn_of_each(swept, base, len(settings)) if swept else recipe.evaluate.generate.images
    return drawn * sum(drawing(model, setting) for setting in settings), None


def _rows(model: Model) -> int:
    return model.num_tokens + model.trunk.buffer_size


def drawing(model: Model, settings: Sampling) -> float:
    """Return the operations that drawing an image takes."""
    found, halves = weights(model), 2 if settings.cfg_scale != 1 else 1
    passes = 1 if model.trunk.teacher_forced else settings.ar_steps
    steps, denoises = settings.diffusion_steps, isinstance(model.head, DiffusionHead | FlowHead)
    evaluations = (steps.first + steps.last) / 2 if denoises else 1
    trunk = found.trunk * _rows(model) * passes + found.classes * settings.ar_steps
    return 2.0 * halves * (trunk + found.head * model.num_tokens * evaluations)


def fitted(config: Fit, size: int, images: int | None) -> tuple[float | None, float]:
    """Return the operations of a fit, the codebook and added terms left out, and the bytes of its weights."""
    if isinstance(config, FitPCATokenizer):  # principal components: the covariance of the patches
        dimensions, mirrored = 3 * config.stride**2, 2
        patches = images and mirrored * min(images, MOST_FITTED) * (size // config.stride) ** 2
        return patches and 2.0 * patches * dimensions**2, dimensions * (config.components + 1) * 4.0
    import torch  # seconds to import, and only here
    from torch.utils.flop_counter import FlopCounterMode

    from tokenize_jobs.tokenizers.small_kl import Shape, SmallKL

    shape = Shape(stride=config.stride, channels=config.channels, width=config.width, depth=config.depth)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = SmallKL(shape)
        mean, _ = model.encoder(torch.empty(1, 3, size, size)).chunk(2, 1)
        model.decoder(mean)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 3.0 * counter.get_total_flops() * config.batch_size * config.train_steps, weights * 4.0


def _drawn_of_each(swept: SamplingSweep, base: Sampling, combinations: int) -> float:
    """Return the images drawn of each combination on average: not all need be tried, and finalists are drawn again."""
    trials = swept.count(base)
    finalists = min(swept.finalists, trials) * (swept.final_images - swept.images)
    return (trials * swept.images + finalists) / combinations


class Weights(NamedTuple):
    """How many weights a model has, by how often each is multiplied."""

    trunk: int
    """Once a token or row of the class."""
    classes: int
    """Once an image and pass: what the class sets norms and gates by."""
    head: int
    """Once a token that is drawn, or more often where it denoises."""


@functools.cache
def weights(model: Model) -> Weights:
    """Return the numbers of weights of a model."""
    import torch  # seconds to import, and only here

    from train.models.build import build_model

    with torch.device("meta"):
        built = build_model(model)
    classes = sum(of.numel() for name, of in built.named_parameters() if "ada_lin." in name)
    head = sum(of.numel() for of in built.head.parameters())
    return Weights(sum(of.numel() for of in built.parameters()) - classes - head, classes, head)
