"""diffusers' autoencoders without a posterior: AutoencoderTiny (TAESD) and AutoencoderDC (DC-AE)."""

import torch
from diffusers import AutoencoderDC, AutoencoderTiny
from torch import Tensor

from tokenize_jobs.tokens import plain_grid


class PlainTokenizer:
    """Encodes to latents, deterministic."""

    def __init__(self, autoencoder: AutoencoderTiny | AutoencoderDC) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(requires_grad=False)
        self.tokens = plain_grid(autoencoder.config.latent_channels)
        self.stride = 2 ** (len(autoencoder.config.encoder_block_out_channels) - 1)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images in [-1, 1]."""
        return self.autoencoder.encode(images, return_dict=False)[0]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] from unscaled latents."""
        return self.autoencoder.decode(latents.float(), return_dict=False)[0].clamp(-1, 1)

    def to(self, device: str) -> "PlainTokenizer":
        """Move the weights."""
        self.autoencoder.to(device)
        return self
