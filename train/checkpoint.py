"""A model directory, the artifact that sampling takes: model.json, model.safetensors and ema.safetensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from upath import UPath

from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import write_atomic, write_json
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.tokenizers import load as load_tokenizer
from train.card import EMA_WEIGHTS, MODEL, WEIGHTS, ModelCard, is_model_directory, read_card
from train.models.autoregressor import Autoregressor
from train.models.build import build_model
from train.models.config import Model
from train.models.published import check_against


def write_model(
    folder: UPath | Path, card: ModelCard, weights: Mapping[str, Tensor], ema: Mapping[str, Tensor]
) -> None:
    """Write a model directory of raw and averaged weights."""
    for name, state in ((WEIGHTS, weights), (EMA_WEIGHTS, ema)):
        write_atomic(folder / name, save({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}))
    write_json(folder / MODEL, canonical(card, identity=False))


def read_model(folder: UPath | Path, *, ema: bool = True) -> Autoregressor:
    """Return the model in `folder` with its averaged or its raw weights, in evaluation mode, on the CPU.

    Raises InputError when tensors are missing, unexpected or mis-shaped.
    """
    card, path = read_card(folder), folder / (EMA_WEIGHTS if ema else WEIGHTS)
    model = build_model(card.model)
    try:
        state = load(path.read_bytes())
        check_against(state, model.state_dict())
    except FileNotFoundError:
        kind, switch = ("averaged", "--evaluate.generate.no-use-ema") if ema else ("raw", "--evaluate.generate.use-ema")
        raise InputError(f"{path}: this model has no {kind} weights; take the others with {switch}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: {error}") from None
    model.load_state_dict(state)
    return model.eval()


def new_model(config: Model, seed: int, tokenizer: TokenizerFile | None = None) -> Autoregressor:
    """Return the model with the initial weights of this seed, in training mode, on the CPU.

    Raises InputError as `take_parts` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config).train()
    take_parts(model, tokenizer)
    return model


def take_parts(model: Autoregressor, tokenizer: TokenizerFile | None) -> None:
    """Give a model those parts of its tokenizer that it reads tokens with; most have none, and no file is read.

    Raises InputError for another tokenizer than it needs.
    """
    if not (parts := model.of_tokenizer):
        return
    if tokenizer is None:
        raise InputError("this model reads tokens with its tokenizer's codebook: give the tokenizer")
    loaded = load_tokenizer(tokenizer.kind, tokenizer.path)
    for name, part in parts.items():
        own = getattr(loaded, name, None)
        try:
            found = own.state_dict() if own is not None else {}
            part.load_state_dict({key: found[key] for key in part.state_dict()})
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"tokenizer {tokenizer.kind} {tokenizer.path}: not this model's: {reason}") from None


def untrained_directory(card: ModelCard, tokenizer: TokenizerFile, seed: int, folder: UPath) -> UPath:
    """Write a model directory with the initial weights of a training with this seed: the ceiling of an evaluation."""
    if not is_model_directory(folder):
        state = new_model(card.model, seed, tokenizer).state_dict()
        write_model(folder, replace(card, train_steps=0, images_seen=0), state, state)
    return folder
