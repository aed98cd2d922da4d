"""Latent diffusion's VQ-f16 as diffusers' VQModel: 16,384 codes of 8 channels; and its latents before quantisation."""

import re

import torch
from diffusers import VQModel
from torch import Tensor

from infra.errors import InputError
from tokenize_jobs.quantization.codebook import look_up, nearest
from tokenize_jobs.tokenizers.kl import published_name
from tokenize_jobs.tokenizers.weights import read_weights, require_tensors
from tokenize_jobs.tokens import code_grid, plain_grid

VQ16_CODES, VQ16_CHANNELS = 16384, 8
_NOT_MODEL = re.compile(r"^(loss|colorize|model_ema)\b")


class VQTokenizer:
    """Encodes to the code at each place."""

    stride: int

    def __init__(self, vq: VQModel) -> None:
        self.vq = vq.eval().requires_grad_(requires_grad=False)
        self.stride = 2 ** (len(vq.config.block_out_channels) - 1)
        self.tokens = code_grid(vq.config.num_vq_embeddings)

    @property
    def codebook(self) -> Tensor:
        """The vectors (K, C)."""
        return self.vq.quantize.embedding.weight

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) before quantisation of images in [-1, 1]."""
        return self.vq.quant_conv(self.vq.encoder(images))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, h, w) of images in [-1, 1]; distances are always in float32."""
        return nearest(self.latents(images), self.codebook)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of codes (B, 1, h, w), whole numbers."""
        return self._decode(latents[:, 0].long())

    def _decode(self, found: Tensor) -> Tensor:
        quantised = look_up(found, self.codebook)
        of_norms = quantised if self.vq.config.norm_type == "spatial" else None
        return self.vq.decoder(self.vq.post_quant_conv(quantised), of_norms).clamp(-1, 1)

    def to(self, device: str) -> "VQTokenizer":
        """Move the weights."""
        self.vq.to(device)
        return self


class VQLatents(VQTokenizer):
    """Encodes to the latents before quantisation, which decoding quantises first, as latent diffusion does."""

    def __init__(self, vq: VQModel) -> None:
        super().__init__(vq)
        self.tokens = plain_grid(vq.config.vq_embed_dim)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of images in [-1, 1]."""
        return self.latents(images)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of latents (B, C, h, w)."""
        return self._decode(nearest(latents, self.codebook))


def new_vq16() -> VQModel:
    """Return a VQModel of VQ-f16's shape."""
    return VQModel(
        block_out_channels=(128, 128, 256, 256, 512), layers_per_block=2, norm_num_groups=32,
        latent_channels=VQ16_CHANNELS, num_vq_embeddings=VQ16_CODES, vq_embed_dim=VQ16_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def read_vq16(path: str) -> VQModel:
    """Return VQ-f16 from latent diffusion's file (model.ckpt). Raises InputError naming the tensors that do not fit."""
    found = read_weights(path)
    state = require_tensors(found.get("state_dict", found), path)
    return filled(new_vq16(), {name: of for name, of in state.items() if not _NOT_MODEL.match(name)}, path)


def filled(vq: VQModel, published: dict[str, Tensor], path: str) -> VQModel:
    """Return `vq` with the weights of taming's names. Raises InputError naming some that do not fit."""
    levels = len(vq.config.block_out_channels)
    expected = vq.state_dict()
    renamed = {published_name(name, levels): tensor for name, tensor in published.items()}
    faults = [name for name in renamed if name not in expected]
    faults += [name for name, of in expected.items() if name not in renamed or renamed[name].numel() != of.numel()]
    if faults:
        raise InputError(f"{path}: not VQ-f16: {len(faults)} tensors missing, unknown or mis-shaped, as {faults[:3]}")
    vq.load_state_dict({name: renamed[name].reshape(tensor.shape) for name, tensor in expected.items()})
    return vq
