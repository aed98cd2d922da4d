"""KL autoencoders as diffusers' AutoencoderKL: any diffusers folder, and MAR's KL-16 file, renamed."""

import re
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from infra.errors import InputError
from tokenize_jobs.tokenizers.weights import read_weights, require_tensors
from tokenize_jobs.tokens import gaussian_grid

M = TypeVar("M", bound=ModelMixin)


class KLTokenizer:
    """Encodes to (mean, log variance) of a Gaussian posterior."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self.tokens = gaussian_grid(vae.config.latent_channels)
        self.stride = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return moments (B, 2C, h, w) of images in [-1, 1]; always float32."""
        hidden = self.vae.encoder(images)
        return self.vae.quant_conv(hidden) if self.vae.quant_conv is not None else hidden

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] from unscaled latents; float32, for half precision overflows on early samples."""
        return self.vae.decode(latents.float()).sample.clamp(-1, 1)

    def to(self, device: str) -> "KLTokenizer":
        """Move the weights."""
        self.vae.to(device)
        return self


def read_diffusers(path: str, cls: type[M]) -> M:
    """Return the autoencoder of this class in a diffusers folder, or of a hub's name where there is a network."""
    try:
        return cls.from_pretrained(path, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"tokenizer {path}: not a diffusers {cls.__name__} folder with safetensors ({reason})"
        ) from None


def new_kl16() -> AutoencoderKL:
    """Return an AutoencoderKL of KL-16's shape: 256 px -> 16 x 16 x 16, 66 M parameters."""
    return AutoencoderKL(
        latent_channels=16, block_out_channels=(128, 128, 256, 256, 512), layers_per_block=2, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",) * 5, scaling_factor=0.2325,
    )  # fmt: skip


def read_kl16(path: str) -> AutoencoderKL:
    """Return KL-16 from MAR's published file (kl16.ckpt or .safetensors).

    Raises InputError naming the tensors missing or mis-shaped.
    """
    found = read_weights(path)
    state = require_tensors(found.get("model", found), path)
    vae = new_kl16()
    expected = vae.state_dict()
    renamed = {published_name(name, levels=5): tensor for name, tensor in state.items()}
    faults = [
        name for name, tensor in expected.items() if name not in renamed or renamed[name].numel() != tensor.numel()
    ]
    if faults:
        raise InputError(f"{Path(path)}: not KL-16: {len(faults)} tensors missing or mis-shaped, first {faults[:3]}")
    vae.load_state_dict({name: renamed[name].reshape(tensor.shape) for name, tensor in expected.items()})
    return vae


def published_name(published: str, levels: int) -> str:
    """Return diffusers' name of a tensor of a published autoencoder of taming's code with so many resolutions."""
    last = levels - 1
    name = re.sub(
        r"^(encoder|decoder)\.mid\.block_(\d)", lambda m: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}", published
    )
    name = re.sub(r"^(encoder|decoder)\.mid\.attn_1", r"\1.mid_block.attentions.0", name)
    name = re.sub(r"^encoder\.down\.(\d)\.block", r"encoder.down_blocks.\1.resnets", name)
    name = re.sub(r"^encoder\.down\.(\d)\.attn", r"encoder.down_blocks.\1.attentions", name)
    name = re.sub(r"^encoder\.down\.(\d)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"^decoder\.up\.(\d)\.block", lambda m: f"decoder.up_blocks.{last - int(m[1])}.resnets", name)
    name = re.sub(r"^decoder\.up\.(\d)\.attn", lambda m: f"decoder.up_blocks.{last - int(m[1])}.attentions", name)
    name = re.sub(
        r"^decoder\.up\.(\d)\.upsample\.", lambda m: f"decoder.up_blocks.{last - int(m[1])}.upsamplers.0.", name
    )
    name = name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")
    if ".attentions." in name:
        for old, new in ((".norm.", ".group_norm."), (".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."),
                         (".proj_out.", ".to_out.0.")):  # fmt: skip
            name = name.replace(old, new)
    return name
