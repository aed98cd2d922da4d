"""A model directory, as sampling takes it: model.json, which tells all but the weights. Imports nothing heavy."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import canonical
from infra.from_json import from_json
from tokenize_jobs.config import TokenizerFile
from train.models.config import Model

if TYPE_CHECKING:  # it needs numpy
    from tokenize_jobs.tokens import TokenKind

MODEL, WEIGHTS, EMA_WEIGHTS = "model.json", "model.safetensors", "ema.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model directory says of itself: all that decoding its samples needs besides the tokenizer's file."""

    model: Model
    latent_scale: float
    """Latents in the model's scale divided by this are the tokenizer's."""
    classes: tuple[str, ...]
    tokenizer_kind: str
    tokenizer_hash: str
    train_steps: int
    images_seen: int
    ema_decay: float


def read_card(folder: UPath | Path) -> ModelCard:
    """Read model.json. Raises InputError naming the file."""
    path = folder / MODEL
    try:
        return from_json(path.read_text(), ModelCard, str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give the directory of a trained model") from None


def check_tokens(kind: "TokenKind", model: Model, weights: TokenizerFile) -> None:
    """Raise InputError unless what a tokenizer makes of an image is what the model draws."""
    made, trained = kind.for_model(), canonical(model, identity=False)
    if made != {name: trained[name] for name in made}:
        raise InputError(
            f"tokenizer {weights.kind} {weights.path}: makes {kind.told()} of an image, not the tokens of this model: "
            f"{trained['tokens']} in {trained['latent_channels']} channels"
        )


def content_digest(folder: UPath | Path) -> str:
    """Return a digest of a model's description and weights. Raises InputError naming the file that is missing.

    A registered model has averaged weights alone, one trained without averaging raw weights alone.
    """
    digest = hashlib.sha256()
    weights = [name for name in (WEIGHTS, EMA_WEIGHTS) if (folder / name).exists()] or [WEIGHTS]
    for name in (MODEL, *weights):
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read ({error})") from None
    return digest.hexdigest()[:16]


def is_model_directory(folder: UPath | Path) -> bool:
    """Tell whether `folder` holds a trained model."""
    try:
        json.loads((folder / MODEL).read_text())
    except (OSError, ValueError):
        return False
    return True
