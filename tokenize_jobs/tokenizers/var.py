"""VAR's tokenizer (Tian et al. 2024): stride 16, 4,096 codes of 32 channels at ten scales of a 256-pixel image.

Encoder and decoder are diffusers' VQModel's; the published attention keeps q, k and v in one convolution.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from diffusers import VQModel
from torch import Tensor, nn

from infra.errors import InputError
from tokenize_jobs.quantization.codebook import Codebook
from tokenize_jobs.quantization.scales import Scales
from tokenize_jobs.tokenizers.kl import published_name
from tokenize_jobs.tokenizers.weights import read_weights, require_tensors
from tokenize_jobs.tokens import multi_scale_grid
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES

VAR16_CODES, VAR16_CHANNELS, _PHIS, _WIDTH, _LEVELS = 4096, 32, 4, 160, 5
_HITS = "quantize.ema_vocab_hit_SV"  # a record of the published training


class VARTokenizer(nn.Module):
    """Encodes to the codes of all scales in one row."""

    stride = 16

    def __init__(self, width: int, channels: int, codes: int, sets: Sequence[Sequence[int]] = PUBLISHED_SCALES) -> None:
        super().__init__()
        shell = VQModel(
            block_out_channels=(width, width, 2 * width, 2 * width, 4 * width), layers_per_block=2, norm_num_groups=32,
            latent_channels=channels, num_vq_embeddings=1, vq_embed_dim=channels,
            down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        self.encoder, self.decoder = shell.encoder, shell.decoder
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scales, self.sets = Scales(Codebook(codes, channels), _PHIS), sets
        self.tokens = multi_scale_grid(codes, channels, sets, _PHIS)
        self.eval().requires_grad_(requires_grad=False)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, C, h, w) that are quantised of images in [-1, 1]."""
        return self.quant_conv(self.encoder(images))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, L) of images in [-1, 1]; always quantised in float32."""
        features = self.features(images)
        return self.scales.encode(features, next(sides for sides in self.sets if sides[-1] == features.shape[-1]))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] of codes (B, 1, L, 1), whole numbers."""
        codes = latents[:, 0, :, 0].long()
        sides = next(sides for sides in self.sets if sum(side**2 for side in sides) == codes.shape[1])
        *_, features = self.scales.partial_sums(codes, sides)
        return self.of_features(features)

    @torch.inference_mode()
    def of_features(self, features: Tensor) -> Tensor:
        """Return images in [-1, 1] of features (B, C, h, w), after the last scale or an earlier one."""
        return self.decoder(self.post_quant_conv(features)).clamp(-1, 1)


def read_var16(path: str) -> VARTokenizer:
    """Return VAR's tokenizer from its file, vae_ch160v4096z32.pth. Raises InputError naming tensors that do not fit."""
    state = require_tensors(read_weights(path), path)
    return filled(VARTokenizer(_WIDTH, VAR16_CHANNELS, VAR16_CODES), state, path)


def filled(tokenizer: VARTokenizer, published: Mapping[str, Tensor], path: str) -> VARTokenizer:
    """Return `tokenizer` with the published weights. Raises InputError naming the first tensors that do not fit."""
    expected, found = tokenizer.state_dict(), from_published(published)
    faults = [name for name in found if name not in expected]
    faults += [
        f"{name} {tuple(found[name].shape) if name in found else 'is missing'}, not {tuple(of.shape)}"
        for name, of in expected.items()
        if name not in found or found[name].numel() != of.numel()
    ]
    if faults:
        raise InputError(
            f"{path}: not VAR's tokenizer: {len(faults)} tensors missing, unknown or mis-shaped, as {faults[:3]}"
        )
    tokenizer.load_state_dict({name: found[name].reshape(of.shape) for name, of in expected.items()})
    return tokenizer


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names."""
    ours = {}
    for name, tensor in state.items():
        if name == "quantize.embedding.weight":
            ours["scales.codebook.vectors"] = tensor
        elif name.startswith("quantize."):
            if name != _HITS:
                ours[re.sub(r"^quantize\.quant_resi\.qresi_ls", "scales.phis", name)] = tensor
        elif ".qkv." in name:
            thirds = zip("qkv", tensor.chunk(3), strict=False)
            ours |= {published_name(name.replace(".qkv.", f".{which}."), _LEVELS): third for which, third in thirds}
        else:
            ours[published_name(name, _LEVELS)] = tensor
    return ours
