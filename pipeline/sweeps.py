"""Spaces that `mar tune --sweep NAME` searches: each a function of the recipe that it is for.

One of your own is a function here, and its name in SWEEPS: values of any typed fields of a recipe, by dotted name.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from infra.errors import InputError, nearest
from infra.storage import location
from pipeline.recipe import Recipe
from train.card import read_card
from train.models.trunks import MaskedTrunk
from tune.config import FieldSweep, HeadSweep, SamplingSweep, TrainingSweep

_MAIN_AXES = ("temperature", "cfg_scale", "ar_steps")


def sampling(recipe: Recipe) -> SamplingSweep:
    """Return the recipe's own space of sampling settings, or the paper's widened to what young models need.

    What the recipe samples with is among them. Trunks other than MAR's have one number of steps.
    """
    if isinstance(recipe.tune, SamplingSweep):
        return recipe.tune
    space, own = SamplingSweep(), recipe.evaluate.generate.sampling
    axes = {name: tuple(sorted({*getattr(space, name), getattr(own, name)})) for name in _MAIN_AXES}
    given = read_card(location(recipe.checkpoint)).model if recipe.checkpoint else None
    if not isinstance(given.trunk if given else recipe.train.model.trunk, MaskedTrunk):
        axes["ar_steps"] = ()
    elif given is not None:  # more steps than tokens are refused
        axes["ar_steps"] = tuple(of for of in axes["ar_steps"] if of <= given.num_tokens) or (given.num_tokens,)
    return replace(space, **axes)


def head(recipe: Recipe) -> TrainingSweep:
    """Return widths of the head's MLP: a quarter, half, once and one and a half times the recipe's, as Table 3 has."""
    config = recipe.train.model.head
    if not hasattr(config, "width"):
        raise InputError(f"--sweep head: a {config.kind} head has no width")
    width = config.width
    widths = tuple(sorted({max(1, of) for of in (width // 4, width // 2, width, width * 3 // 2)}))
    if not hasattr(config, "depth"):
        return fields(recipe, {"train.model.head.width": widths})
    return HeadSweep(width=widths, depth=(config.depth,), images=recipe.evaluate.generate.images)


def optimizer(recipe: Recipe) -> TrainingSweep:
    """Return learning rates and their schedules, warm-ups, and least shares of masked tokens."""
    train = recipe.train
    space: dict[str, Sequence[Any]] = {
        "train.lr": [train.lr / 2, train.lr, train.lr * 2],
        "train.lr_schedule": sorted({"constant", "cosine", train.lr_schedule}),
        "train.warmup_steps": sorted({train.warmup_steps // 4, train.warmup_steps}),
    }
    least = getattr(train.model.trunk, "mask_ratio_min", None)
    if least is not None:
        space["train.model.trunk.mask_ratio_min"] = sorted({least, 0.7 if least == 0.5 else 0.5})
    return fields(recipe, space)


def fields(recipe: Recipe, space: dict[str, Sequence[Any]]) -> FieldSweep:
    """Return a sweep over these values of a recipe's fields, measured with as many images as the recipe is."""
    return FieldSweep(
        space=tuple(f"{name}={json.dumps(list(values))}" for name, values in space.items()),
        images=recipe.evaluate.generate.images,
    )


SWEEPS: dict[str, Callable[[Recipe], SamplingSweep | TrainingSweep]] = {
    "sampling": sampling, "head": head, "optimizer": optimizer,
}  # fmt: skip


def swept(recipe: Recipe, name: str) -> SamplingSweep | TrainingSweep:
    """Return the sweep of this name for a recipe. Raises InputError when there is none."""
    if name not in SWEEPS:
        raise InputError(f"--sweep {name}: no such sweep.{nearest(name, SWEEPS)} There are {', '.join(SWEEPS)}.")
    return SWEEPS[name](recipe)
