"""What every tokenizer that was fitted on the user's own images is: a module in a folder of its shape and weights."""

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from safetensors.torch import save
from torch import Tensor, nn

from infra.errors import InputError
from infra.storage import write_atomic, write_json
from tokenize_jobs.tokenizers.weights import read_weights
from tokenize_jobs.tokens import Grid

_WEIGHTS, SHAPE = "tokenizer.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class FittedShape:
    """Sizes of a fitted tokenizer."""

    stride: int


class Fitted(nn.Module):
    """Base of the fitted tokenizers."""

    shape_type: ClassVar[type[FittedShape]]

    def __init__(self, shape: FittedShape, tokens: Grid) -> None:
        super().__init__()
        self.shape, self.stride, self.tokens = shape, shape.stride, tokens

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the values to store of images (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of latents (B, C, h, w)."""

    def write(self, folder: Path) -> None:
        """Write shape and weights below `folder`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(folder / _WEIGHTS, save(tensors))
        write_json(folder / SHAPE, asdict(self.shape))

    @classmethod
    def read(cls, folder: str) -> Self:
        """Read what `write` wrote. Raises InputError naming the folder."""
        path = Path(folder).expanduser()
        try:
            model = cls(cls.shape_type(**json.loads((path / SHAPE).read_text()))).eval()  # pyrefly: ignore
            model.load_state_dict(read_weights(path / _WEIGHTS))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"tokenizer {path}: not a fitted tokenizer ({str(error).splitlines()[0][:160]})") from None
        return model
