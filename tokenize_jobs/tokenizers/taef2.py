"""TAEF2: a tiny deterministic autoencoder for the FLUX.2 latent space, 8x, 32 channels (MIT, madebyollin/taesd).

Input range [0, 1]. A pooled block's GroupNorm looks at the whole image, so latents of a crop are not the
crop of the latents.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from infra.errors import InputError
from tokenize_jobs.tokenizers.weights import read_weights
from tokenize_jobs.tokens import plain_grid

_WIDTH, _LATENT = 64, 32


class _Block(nn.Module):
    def __init__(self, pooled: bool = False) -> None:  # noqa: FBT001, FBT002  the two kinds of a published layer
        super().__init__()
        if pooled:
            inner = 4 * _WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(_WIDTH, inner, 1, bias=False), nn.GroupNorm(4, inner), nn.ReLU(),
                nn.Conv2d(inner, _WIDTH, 1, bias=False),
            )  # fmt: skip
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())

    def forward(self, h: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            h = h + self.pool(h)
        return torch.relu(self.conv(h) + h)


class _SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _conv(into: int = _WIDTH, out: int = _WIDTH, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=bias)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3), _Block()]
    for pooled in (False, False, True):
        layers += [_conv(stride=2, bias=False), *(_Block(pooled) for _ in range(3))]
    return nn.Sequential(*layers, _conv(out=_LATENT))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), _conv(_LATENT), nn.ReLU()]
    for pooled in (True, False, False):
        layers += [*(_Block(pooled) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(out=3))


class TAEF2(nn.Module):
    """Stride 8, 32 channels, deterministic."""

    stride, tokens = 8, staticmethod(plain_grid(_LATENT))

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(), _decoder()

    @classmethod
    def read(cls, folder: str) -> "TAEF2":
        """Read taef2_encoder.safetensors and taef2_decoder.safetensors from a folder."""
        model = cls().eval()
        for half, module in (("encoder", model.encoder), ("decoder", model.decoder)):
            path = Path(folder).expanduser() / f"taef2_{half}.safetensors"
            try:
                module.load_state_dict(read_weights(path))
            except RuntimeError as error:
                raise InputError(f"{path}: not TAEF2 weights ({str(error).splitlines()[-1].strip()[:160]})") from None
        return model

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, 32, H/8, W/8) of images in [-1, 1]."""
        return self.encoder((images + 1) / 2)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1]."""
        return self.decoder(latents).clamp(0, 1) * 2 - 1
