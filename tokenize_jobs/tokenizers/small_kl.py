"""A small KL autoencoder that works at twice the latents' resolution, so that a laptop's processor can fit it.

Pixels are folded into channels (pixel unshuffle), a few residual blocks follow, and their output is folded once
more; the decoder mirrors it. Good for small pictures; for photos take a pretrained tokenizer.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from infra.errors import InputError
from infra.storage import write_atomic, write_json
from tokenize_jobs.tokenizers.weights import read_weights
from tokenize_jobs.tokens import gaussian

_WEIGHTS, _SHAPE = "tokenizer.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a small KL autoencoder."""

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


class SmallKL(nn.Module):
    """Encodes to (mean, log variance) of a Gaussian posterior."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.stride, self.tokens = shape, shape.stride, gaussian(shape.channels)
        fold, width, depth = shape.stride // 2, shape.width, shape.depth
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(fold), _conv(3 * fold**2, width), *_blocks(width, depth),
            nn.PixelUnshuffle(2), _conv(4 * width, 2 * shape.channels),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            _conv(shape.channels, 4 * width), nn.PixelShuffle(2),
            *_blocks(width, depth), _conv(width, 3 * fold**2), nn.PixelShuffle(fold),
        )  # fmt: skip

    def moments(self, images: Tensor) -> Tensor:
        """Return moments (B, 2C, h, w) of images (B, 3, H, W) in [-1, 1], with gradients."""
        return self.encoder(images)

    def images(self, latents: Tensor) -> Tensor:
        """Return images in about [-1, 1] of latents (B, C, h, w), with gradients."""
        return self.decoder(latents)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return moments (B, 2C, h, w) of images in [-1, 1]."""
        return self.moments(images)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1]."""
        return self.images(latents.float()).clamp(-1, 1)

    def write(self, folder: Path) -> None:
        """Write shape and weights below `folder`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(folder / _WEIGHTS, save(tensors))
        write_json(folder / _SHAPE, asdict(self.shape))

    @classmethod
    def read(cls, folder: str) -> "SmallKL":
        """Read what `write` wrote. Raises InputError naming the file."""
        path = Path(folder)
        try:
            model = cls(Shape(**json.loads((path / _SHAPE).read_text()))).eval()
            model.load_state_dict(read_weights(path / _WEIGHTS))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"tokenizer {path}: not a fitted tokenizer ({str(error).splitlines()[0][:160]})") from None
        return model
