"""MODEL --to FILE: the weights of a model directory under the published names

Of MAR a .safetensors holds the averaged weights alone, a .pth the raw and the averaged ones. Of VAR, which averages
none, both hold the raw weights, as one table.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from infra.console import say
from infra.errors import InputError
from infra.storage import location
from pipeline.flags import parse
from train.card import read_card
from train.checkpoint import read_model
from train.models.published import to_published
from train.models.trunks import NextScaleTrunk


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model directory's weights under the published names."""

    to: str = "model.safetensors"
    """The .safetensors (of MAR averaged weights alone) or .pth (raw and averaged) to write; of VAR raw weights."""


def main(words: list[str]) -> None:
    """Export the model and say what was written."""
    say(export_checkpoint(words[0], parse(Export(), words[1:], f"mar export {words[0]}")))


def export_checkpoint(model: str, config: Export) -> str:
    """Write the published layout; returns what was written. Raises InputError for a model without one."""
    card, target = read_card(location(model)), Path(config.to)
    averages = not isinstance(card.model.trunk, NextScaleTrunk)
    sets = {ema: read_model(location(model), ema=ema).state_dict() for ema in ((False, True) if averages else (False,))}
    try:
        published = {ema: to_published(state, card.model) for ema, state in sets.items()}
    except ValueError as error:
        raise InputError(f"{model}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in published[averages].items()}, target)
    else:
        torch.save({"model": published[False], "model_ema": published[True]} if averages else published[False], target)
    which = "" if averages else ", raw weights"
    return f"{target}: {len(published[averages])} tensors under the published names{which}"
