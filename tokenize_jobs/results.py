"""What the steps pictures, tokenizer and latents return. Imports nothing heavy."""

import json
from dataclasses import dataclass

from upath import UPath

from infra.result import Dataset, Report, Result


@dataclass(frozen=True, kw_only=True)
class PicturesResult(Result):
    """What was drawn."""

    images: int
    heldout_images: int
    attribution: str


@dataclass(frozen=True, kw_only=True)
class TokenizerResult(Result):
    """A fitted tokenizer's size and quality."""

    parameters: int
    fit_steps: int
    fit_images: int
    """Images it was fitted on."""
    psnr_heldout_db: float | None = None
    """Mean over held-out images, decoded from their likeliest latents."""


@dataclass(frozen=True, kw_only=True)
class LatentsResult(Result):
    """What a latent store holds, and how fast it was made."""

    label: str
    images: int
    quarantined: int
    bytes: int
    classes: tuple[str, ...]
    images_per_second: float | None = None
    encoders_busy: float | None = None
    """Share of the time that the encoders encoded."""
    latent_scale: float | None = None
    """Factor that brings continuous latents to unit variance."""
    gaussian_bits: float | None = None
    """Bits a number that the best constant Gaussian needs for continuous latents, in the scale of the model."""
    codebook_usage: float | None = None
    """Share of the codebook that is in use, where tokens are codes."""
    codebook_perplexity: float | None = None
    """exp(entropy) of the codes' frequencies."""
    sub_pixel_entropy: float | None = None
    """Entropy of the values' frequencies, in bits per dimension, where tokens are sub-pixels."""

    def report(self, path: UPath) -> Report:
        """Return the numbers, and the store as a dataset of the run."""
        names = ("latent_scale", "gaussian_bits", "codebook_usage", "codebook_perplexity", "sub_pixel_entropy")
        measured = {name: getattr(self, name) for name in names}
        profile = json.dumps({"images": self.images} | {k: v for k, v in measured.items() if v is not None})
        data = Dataset(
            name=f"latents-{self.label}", digest=path.name, source=str(path), profile=profile, context="training"
        )
        return Report(metrics=super().report(path).metrics, datasets=(data,))
