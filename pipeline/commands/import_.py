"""FILE [flags]: a published MAR or VAR checkpoint -> a model directory for sample and evaluate

FILE is checkpoint-last.pth, var_d16.pth, or a .safetensors of one set of weights. A pickle with code in it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infra.console import say
from infra.errors import InputError
from infra.storage import location
from pipeline.flags import parse
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer, TokenizerFile
from tokenize_jobs.tokenizers.weights import read_weights, require_tensors
from train.card import ModelCard, check_tokens
from train.checkpoint import take_parts, write_model
from train.models.build import build_model
from train.models.config import Model
from train.models.published import check_against, from_published, recognise, to_published
from train.models.trunks import NextScaleTrunk

_KL16_SCALE = 0.2325  # of the published checkpoints, which do not carry it
_EMA_DECAY = 0.9999


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a published MAR or VAR file into a model directory for `mar sample` and `mar evaluate`."""

    tokenizer: PretrainedTokenizer = field(default_factory=PretrainedTokenizer)
    """The tokenizer that the model was trained with."""
    to: str = "model"
    """Directory to write the model to."""
    patch_size: int = 1
    """2 for models on stride-8 latents grouped 2x2."""
    heads: int = 0
    """Attention heads, which the file does not say; 0 takes those of the published size."""
    latent_scale: float = _KL16_SCALE
    """Factor on the tokenizer's latents in training."""


def main(words: list[str]) -> None:
    """Import the file and say what it is."""
    say(import_checkpoint(words[0], parse(Import(), words[1:], f"mar import {words[0]}")))


def import_checkpoint(file: str, config: Import) -> str:
    """Write the model directory; returns what was recognised.

    Raises InputError naming the file and the first tensors that do not fit, or a tokenizer of other tokens; a pickle
    with code is refused.
    """
    raw, ema = _weight_sets(read_weights(file), file)
    weights = tokenizers.find(config.tokenizer.kind, config.tokenizer.path)
    kind, digest = weights.kind, weights.hash
    try:
        shape = recognise(ema, config.patch_size, config.heads or None)
        shape.check()
        models = [_filled(shape, tensors, weights) for tensors in (raw, ema)]
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    check_tokens(tokenizers.load(kind, weights.path).tokens(shape.latent_size), shape, weights)
    latent_scale = 1.0 if shape.tokens.form == "codes" else config.latent_scale
    card = ModelCard(
        model=shape, latent_scale=latent_scale, classes=tuple(str(index) for index in range(shape.num_classes)),
        tokenizer_kind=kind, tokenizer_hash=digest, train_steps=0, images_seen=0, ema_decay=_EMA_DECAY,
    )  # fmt: skip
    write_model(location(config.to), card, *(model.state_dict() for model in models))
    parameters = sum(parameter.numel() for parameter in models[0].parameters())
    return (
        f"{config.to}: {parameters} parameters, {_told(shape)}, {shape.num_tokens} tokens of {shape.token_channels}, "
        f"{shape.num_classes} classes"
    )


def _told(shape: Model) -> str:
    trunk = shape.trunk
    if isinstance(trunk, NextScaleTrunk):
        return f"next scale {trunk.depth} x {trunk.width}"
    return f"encoder {trunk.encoder_depth} x {trunk.encoder_width}, head {shape.head.depth} x {shape.head.width}"


def _weight_sets(found: Any, file: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:  # noqa: ANN401
    """Return (raw, averaged) weights: of a training checkpoint, or one set twice."""
    if isinstance(found, dict) and "model" in found:
        return require_tensors(found["model"], file), require_tensors(found.get("model_ema", found["model"]), file)
    if isinstance(found, dict) and "model_ema" in found:
        return (require_tensors(found["model_ema"], file),) * 2
    return (require_tensors(found, file),) * 2


def _filled(shape: Model, published: Mapping[str, Tensor], tokenizer: TokenizerFile) -> torch.nn.Module:
    with torch.device("meta"):
        expected = to_published(build_model(shape).state_dict(), shape)
    check_against(published, expected)
    model = build_model(shape)
    take_parts(model, tokenizer)
    found = {name: tensor.float() for name, tensor in from_published(published).items()}
    model.load_state_dict(model.state_dict() | found)
    return model.eval()
