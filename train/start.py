"""What a training starts from in place of random weights: a model that exists."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from upath import UPath

from infra.errors import InputError
from tokenize_jobs.config import TokenizerFile
from train.card import EMA_WEIGHTS, WEIGHTS, read_card
from train.checkpoint import new_model
from train.config import StartWeights
from train.models.autoregressor import Autoregressor
from train.models.build import build_model
from train.models.config import Model
from train.models.published import check_against

FLAG = "--train.start-from"
FILES: Mapping[StartWeights, str] = {"ema": EMA_WEIGHTS, "raw": WEIGHTS}
_OF_CLASSES = "class_emb.weight"
_OF_TOKENS = ("latent_size", "latent_channels", "patch_size", "tokens")


@dataclass(frozen=True)
class Start:
    """A model directory, and which of its weights are taken."""

    folder: UPath
    weights: StartWeights

    @property
    def file(self) -> UPath:
        """The weights."""
        return self.folder / FILES[self.weights]

    def check(self, model: Model, tokenizer_hash: str) -> None:
        """Raise InputError unless it was trained on such tokens of this tokenizer, and its tensors fit the model.

        Another number of classes fits. No weight is read.
        """
        card = read_card(self.folder)
        for name in _OF_TOKENS:
            own, wanted = getattr(card.model, name), getattr(model, name)
            if own != wanted:
                raise InputError(f"{FLAG} {self.folder}: its {name} is {own}, the latents' {wanted}")
        if card.tokenizer_hash != tokenizer_hash:
            raise InputError(
                f"{FLAG} {self.folder}: it was trained on latents of the tokenizer {card.tokenizer_kind} "
                f"{card.tokenizer_hash}, these are of {tokenizer_hash}; take that tokenizer with --tokenizer KIND:PATH"
            )
        wanted_heads = _heads(model)
        for name, own in _heads(card.model).items():
            if own != wanted_heads.get(name, own):  # another kind of trunk has other tensors too
                raise InputError(f"{FLAG} {self.folder}: it has {name} {own}; give --train.model.trunk.{name} {own}")
        with torch.device("meta"):
            expected = build_model(replace(model, num_classes=card.model.num_classes)).state_dict()
        try:
            check_against(_shapes(self.file), expected)
        except (OSError, ValueError) as error:
            raise InputError(f"{FLAG} {self.file}: {error}") from None

    def load_into(self, model: Autoregressor) -> None:
        """Take its weights; the class embedding stays as it is where the number of classes is another."""
        try:
            state = load(self.file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{FLAG} {self.file}: {error}") from None
        own = model.state_dict()
        if state[_OF_CLASSES].shape != own[_OF_CLASSES].shape:
            state[_OF_CLASSES] = own[_OF_CLASSES]
        model.load_state_dict(state)

    def told(self, model: Model) -> str:
        """Return what the console says of it."""
        card = read_card(self.folder)
        of = f"starting from {self.folder}, weights {self.weights}, {card.train_steps:,} steps"
        if card.model.num_classes == model.num_classes:
            return of
        return f"{of}; the class embedding is new: {model.num_classes} classes instead of {card.model.num_classes}"


def initial_model(
    config: Model, seed: int, start: Start | None, tokenizer: TokenizerFile | None = None
) -> Autoregressor:
    """Return the model that the first step of a training finds, in training mode, on the CPU."""
    model = new_model(config, seed, tokenizer)
    if start is not None:
        start.load_into(model)
    return model


def _heads(model: Model) -> dict[str, int]:
    """Return the numbers of attention heads, by the trunk's fields: no tensor's shape shows them."""
    return {name.replace("_", "-"): of for name, of in asdict(model.trunk).items() if name.endswith("heads")}


def _shapes(path: UPath | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file without their values. Raises ValueError for what is none."""
    with path.open("rb") as file:
        size, held = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if size > held:
            raise ValueError("its header is cut short or damaged")
        header = json.loads(file.read(size))
    try:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if (ends := 8 + size + max(entry["data_offsets"][1] for entry in entries.values())) != held:
            raise ValueError(f"has {held} bytes, and its tensors end at {ends}")
        return {name: torch.empty(entry["shape"], device="meta") for name, entry in entries.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"its header is damaged ({error!r})") from None
