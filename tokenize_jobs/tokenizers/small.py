"""What the small autoencoders share, which a laptop's processor can fit: they work at twice the latents' resolution.

Pixels are folded into channels (pixel unshuffle), a few residual blocks follow, and their output is folded once
more; the decoder mirrors it. Good for small pictures; for photos take a pretrained tokenizer.
"""

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from infra.errors import InputError
from infra.storage import write_atomic, write_json
from tokenize_jobs.tokenizers.weights import read_weights
from tokenize_jobs.tokens import Grid

_WEIGHTS, SHAPE = "tokenizer.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a small autoencoder."""

    stride: int
    """Even."""
    channels: int
    width: int
    depth: int


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))


def _blocks(width: int, depth: int) -> list[nn.Module]:
    return [*(_Residual(width) for _ in range(depth)), nn.GroupNorm(8, width), nn.SiLU()]


def _conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


class SmallAutoencoder(nn.Module):
    """Base of the small autoencoders, which differ in what lies between encoder and decoder."""

    shape_type: ClassVar[type[Shape]] = Shape

    def __init__(self, shape: Shape, encoded_channels: int, tokens: Grid) -> None:
        super().__init__()
        self.shape, self.stride, self.tokens = shape, shape.stride, tokens
        fold, width, depth = shape.stride // 2, shape.width, shape.depth
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(fold), _conv(3 * fold**2, width), *_blocks(width, depth),
            nn.PixelUnshuffle(2), _conv(4 * width, encoded_channels),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            _conv(shape.channels, 4 * width), nn.PixelShuffle(2),
            *_blocks(width, depth), _conv(width, 3 * fold**2), nn.PixelShuffle(fold),
        )  # fmt: skip

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights of the decoder's last convolution."""
        return self.decoder[-2].weight

    @classmethod
    @abstractmethod
    def new(cls, config: Any) -> Self:  # noqa: ANN401  the config of its kind
        """Return the freshly initialised autoencoder that a config describes."""

    @abstractmethod
    def reconstruct(self, images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return decoded images (B, 3, H, W), with gradients, and what the fit adds to their error."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the values to store of images in [-1, 1]."""

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of latents (B, C, h, w)."""
        return self.decoder(latents.float()).clamp(-1, 1)

    def write(self, folder: Path) -> None:
        """Write shape and weights below `folder`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(folder / _WEIGHTS, save(tensors))
        write_json(folder / SHAPE, asdict(self.shape))

    @classmethod
    def read(cls, folder: str) -> Self:
        """Read what `write` wrote. Raises InputError naming the file."""
        path = Path(folder).expanduser()
        try:
            model = cls(cls.shape_type(**json.loads((path / SHAPE).read_text()))).eval()  # pyrefly: ignore
            model.load_state_dict(read_weights(path / _WEIGHTS))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"tokenizer {path}: not a fitted tokenizer ({str(error).splitlines()[0][:160]})") from None
        return model
