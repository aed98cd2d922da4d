"""DALL-E 3's consistency decoder as diffusers' ConsistencyDecoderVAE: a KL encoder, and two steps back from noise."""

import torch
from torch import Tensor

from tokenize_jobs.tokenizers.kl import KLTokenizer

_SEED = 0


class ConsistencyTokenizer(KLTokenizer):
    """Encodes to (mean, log variance); decodes from noise that is the same for every image, whatever its batch."""

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1] from unscaled latents."""
        noise = [torch.Generator().manual_seed(_SEED) for _ in latents]
        return self.vae.decode(latents.float(), generator=noise).sample.clamp(-1, 1)
