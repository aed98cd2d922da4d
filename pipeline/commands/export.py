"""MODEL --to FILE: the weights of a model directory under the published names

A .safetensors holds one table: the averaged weights, or the raw ones where the recipe that trained the model measures
those (`use_ema` False). Of VAR a .pth holds the same table, of MAR the raw and the averaged weights.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from infra.console import say
from infra.errors import InputError
from infra.storage import location
from pipeline.flags import parse
from pipeline.given import measures_averages
from train.card import read_card
from train.checkpoint import read_model
from train.models.published import to_published
from train.models.trunks import NextScaleTrunk

_KEYS = {False: "model", True: "model_ema"}


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model directory's weights under the published names."""

    to: str = "model.safetensors"
    """The .safetensors (the weights that are measured) or .pth (of MAR raw and averaged weights) to write."""


def main(words: list[str]) -> None:
    """Export the model and say what was written."""
    say(export_checkpoint(words[0], parse(Export(), words[1:], f"mar export {words[0]}")))


def export_checkpoint(model: str, config: Export) -> str:
    """Write the published layout; returns what was written. Raises InputError for a model without one."""
    folder, target = location(model), Path(config.to)
    card, measured = read_card(folder), measures_averages(folder)
    is_table = target.suffix == ".safetensors" or isinstance(card.model.trunk, NextScaleTrunk)
    sets = {ema: read_model(folder, ema=ema).state_dict() for ema in ((measured,) if is_table else (False, True))}
    try:
        published = {ema: to_published(state, card.model) for ema, state in sets.items()}
    except ValueError as error:
        raise InputError(f"{model}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in published[measured].items()}, target)
    else:
        torch.save(published[measured] if is_table else {_KEYS[ema]: of for ema, of in published.items()}, target)
    which = " and ".join("averaged" if ema else "raw" for ema in published)
    return f"{target}: {len(published[measured])} tensors under the published names, {which} weights"
