"""Published MAR checkpoints in and out: `mar import` makes a model directory, `mar export` the published layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from infra.errors import InputError
from infra.storage import location
from tokenize_jobs import tokenizers
from tokenize_jobs.tokenizers.weights import read_weights, require_tensors
from train.checkpoint import ModelCard, read_card, read_model, write_model
from train.models.build import build_model
from train.models.config import Model
from train.models.published import check_against, from_published, recognise, to_published

_KL16_SCALE = 0.2325  # of the published checkpoints, which do not carry it
_EMA_DECAY = 0.9999


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a published MAR file into a model directory for `mar sample` and `mar evaluate`."""

    file: Annotated[str, tyro.conf.Positional]
    """checkpoint-last.pth, or a .safetensors of one set of weights."""
    tokenizer: str
    """KIND:PATH of the tokenizer it was trained with, as in kl16:/path/kl16.ckpt."""
    out: str = "model"
    """Directory to write."""
    patch_size: int = 1
    """2 for models on stride-8 latents grouped 2x2."""
    heads: int = 0
    """Attention heads, which no tensor tells; 0 takes the published size's."""
    latent_scale: float = _KL16_SCALE
    """Factor on the tokenizer's latents in training."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model directory's weights under the published names."""

    model: Annotated[str, tyro.conf.Positional]
    """Directory with model.json."""
    file: Annotated[str, tyro.conf.Positional]
    """The .safetensors (averaged weights alone) or .pth (raw and averaged) to write."""


def import_checkpoint(config: Import) -> str:
    """Write the model directory; returns what was recognised.

    Raises InputError naming the file and the first tensors that do not fit; a pickle with code is refused.
    """
    raw, ema = _weight_sets(read_weights(config.file), config.file)
    chosen = tokenizers.parse(config.tokenizer)
    digest = tokenizers.find(chosen.kind, chosen.path).hash
    try:
        shape = recognise(ema, config.patch_size, config.heads or None)
        models = [_filled(shape, tensors) for tensors in (raw, ema)]
    except ValueError as error:
        raise InputError(f"{config.file}: {error}") from None
    card = ModelCard(
        model=shape, latent_scale=config.latent_scale, classes=tuple(str(index) for index in range(shape.num_classes)),
        tokenizer_kind=chosen.kind, tokenizer_hash=digest, train_steps=0, images_seen=0, ema_decay=_EMA_DECAY,
    )  # fmt: skip
    write_model(location(config.out), card, *models)
    parameters = sum(parameter.numel() for parameter in models[0].parameters())
    return (
        f"{config.out}: {parameters} parameters, encoder {shape.encoder_depth} x {shape.encoder_width}, head "
        f"{shape.head.depth} x {shape.head.width}, {shape.num_tokens} tokens of {shape.token_channels}, "
        f"{shape.num_classes} classes"
    )


def export_checkpoint(config: Export) -> str:
    """Write the published layout; returns what was written. Raises InputError for a model without one."""
    card, target = read_card(location(config.model)), Path(config.file)
    sets = {ema: read_model(location(config.model), ema=ema).state_dict() for ema in (False, True)}
    try:
        official = {ema: to_published(state, card.model) for ema, state in sets.items()}
    except ValueError as error:
        raise InputError(f"{config.model}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in official[True].items()}, target)
    else:
        torch.save({"model": official[False], "model_ema": official[True]}, target)
    return f"{target}: {len(official[True])} tensors under the published names"


def _weight_sets(found: Any, file: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:  # noqa: ANN401
    """Return (raw, averaged) weights: of a training checkpoint, or one set twice."""
    if isinstance(found, dict) and "model" in found:
        return require_tensors(found["model"], file), require_tensors(found.get("model_ema", found["model"]), file)
    if isinstance(found, dict) and "model_ema" in found:
        return (require_tensors(found["model_ema"], file),) * 2
    return (require_tensors(found, file),) * 2


def _filled(shape: Model, official: Mapping[str, Tensor]) -> torch.nn.Module:
    with torch.device("meta"):
        expected = to_published(build_model(shape).state_dict(), shape)
    check_against(official, expected)
    model = build_model(shape)
    model.load_state_dict({name: tensor.float() for name, tensor in from_published(official).items()})
    return model.eval()
