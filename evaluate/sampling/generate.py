"""Draws images uint8 (n, H, W, 3) from a model directory; labels follow from the index."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from evaluate.config import Sampling
from evaluate.sampling.known import Known
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from evaluate.sampling.smooth import sample_smooth
from infra.errors import InputError
from infra.storage import location
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.pixels import from_uint8, to_uint8
from train.card import check_tokens, read_card
from train.checkpoint import read_model

_PIXELS_AT_ONCE = 64 * 256**2  # bounds the memory of a decoder


class Generator:
    """One model and its tokenizer's decoder on one device. A plain class; needs no Ray."""

    def __init__(self, model: str, weights: TokenizerFile, *, use_ema: bool = True, cores: int = 0) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if cores:
            torch.set_num_threads(cores)
        self.card = read_card(location(model))
        self.model = read_model(location(model), ema=use_ema).to(self.device)
        self.tokenizer = load(weights.kind, weights.path).to(self.device)
        if self.device == "cuda":
            self.model.head.compile_sampling()
        self.kind = self.tokenizer.tokens(self.card.model.latent_size)
        check_tokens(self.kind, self.card.model, weights)

    def labels(self, indices: range) -> torch.Tensor:
        """Return the class of each image: index modulo the number of classes."""
        return torch.tensor([index % self.card.model.num_classes for index in indices])

    def encode(self, image: np.ndarray) -> torch.Tensor:
        """Return the likeliest latents (1, C, h, w), in the model's scale, of an image uint8 (H, W, 3)."""
        encoded = self.tokenizer.encode(from_uint8(image[None], self.device))
        return self.kind.likeliest(encoded).float() * self.card.latent_scale

    def draw(
        self,
        labels: torch.Tensor | None,
        indices: Sequence[int],
        seed: int,
        sampling: Sampling,
        known: Known | None = None,
        *,
        smooth: bool = False,
    ) -> np.ndarray:
        """Return images uint8 (B, H, W, 3) of these labels, or without a class; `indices` name the random streams.

        `smooth`: from soft codes (`smooth.py`), for the eye alone.
        """
        noise = ImageNoise(seed, indices)
        if smooth:
            features = sample_smooth(self.model, labels, noise, sampling, known)
            return self.decode(features, sampling.decoder_precision, self.tokenizer.of_features)
        latents = sample(self.model, labels, noise, sampling, known)
        return self.decode(latents / self.card.latent_scale, sampling.decoder_precision)

    def decode(
        self, latents: torch.Tensor, precision: str = "fp32", by: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> np.ndarray:
        """Return images uint8 (B, H, W, 3) of unscaled latents (B, C, h, w), at most `_PIXELS_AT_ONCE` at a time.

        Never in half precision: a young model's latents are large, and would make black images. Raises InputError for
        those that are no numbers, which uint8 would hide.
        """
        pixels = latents.shape[-2] * latents.shape[-1] * self.tokenizer.stride**2
        parts, by = latents.split(max(1, _PIXELS_AT_ONCE // pixels)), by or self.tokenizer.decode
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return np.concatenate([to_uint8(_finite(by(part).float())) for part in parts])


def _finite(images: torch.Tensor) -> torch.Tensor:
    broken = (~images.flatten(1).isfinite().all(1)).sum().item()
    if broken:
        raise InputError(
            f"{broken} of {len(images)} generated images are not finite numbers: the weights are, or became so under "
            "these sampling settings. Try a lower --evaluate.generate.sampling.cfg-scale, or an earlier checkpoint."
        )
    return images
