"""What tokenization is: the part of a recipe that decides the latents. Imports nothing heavy."""

import hashlib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from infra.errors import InputError
from infra.fingerprint import added, file_at, where

Precision = Literal["fp32", "tf32", "bf16"]
WITHOUT_WEIGHTS = ("pixels", "sub-pixels")
"""Kinds of tokenizers that need no file."""
MOST_FITTED = 20_000
"""Images that a tokenizer is fitted on at most: they fit in memory at any size that it is meant for."""
VGG16_DIGEST = "397923af"
"""What the sha256 of VGG-16's published weights begins with: a recipe names no others."""
_LEAST_FOR_VGG16 = 16
_LARGEST_PATCH = 32
_SHARES = ("codebook_decay", "adversarial_from", "whitening")


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """How images become latents."""

    image_size: int = 256
    """Pixels of a side after the centre crop; the tokenizer's stride must divide it."""
    precision: Precision = added(default="fp32")
    """What the tokenizer encodes in: fp32; tf32, faster on a GPU; or bf16, autocast. The store keeps the error of the
    last two against the first."""
    batch_size: int = where(default=32)
    """Images that an encoder takes at once."""
    max_bad_fraction: float = where(default=0.01)
    """Fail, before publishing, when a larger share of the images had to be quarantined."""

    def label(self, tokenizer: str) -> str:
        """Return the readable name of these latents, the same for every recipe that asks for them: 'kl16-256'."""
        return f"{tokenizer}-{self.image_size}"


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists: what it is (kind, hash) and where its file lies."""

    kind: str
    path: str = where(default="")
    hash: str = ""


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer:
    """A tokenizer whose weights exist already."""

    kind: Literal[
        "kl16", "diffusers", "taef2", "vq16", "vq16-latents", "var16", "fitted", "pixels", "sub-pixels"
    ] = "kl16"  # fmt: skip
    """kl16: MAR's file; diffusers: folder of an AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC or
    ConsistencyDecoderVAE, as its config says; taef2: folder of the two halves; vq16: latent diffusion's VQ-f16, for
    codes; vq16-latents: the same before quantisation; var16: VAR's vae_ch160v4096z32.pth, for codes at ten scales;
    fitted: folder of one fitted before; pixels: no weights, continuous; sub-pixels: none, whole numbers 0..255."""
    path: str = file_at(default="")
    """File or folder of the tokenizer's weights."""

    @property
    def is_whole(self) -> bool:
        """Tell whether nothing is missing to load it: where the weights lie, of a kind that has any."""
        return bool(self.path) or self.kind in WITHOUT_WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fitting any tokenizer on the images themselves takes."""

    stride: int = 8
    """Pixels of the image to a latent, along each side."""

    @property
    def steps(self) -> int:
        """Gradient steps of the fit."""
        return 0

    def check(self, image_size: int) -> None:
        """Raise InputError unless counts are 1 or more, rates and weights 0 or more, shares from 0 to 1, and the stride
        divides the image size."""
        for item in fields(self):
            value, flag = getattr(self, item.name), f"--tokenizer.{item.name.replace('_', '-')}"
            if item.type is int and item.name != "seed" and value < 1:
                raise InputError(f"{flag} {value} is below 1")
            most = 1 if item.name in _SHARES else math.inf
            if item.type is float and not 0 <= value <= most:
                raise InputError(f"{flag} {value} must be " + ("from 0 to 1" if most == 1 else "0 or more"))
        if image_size % self.stride:
            below = image_size // self.stride * self.stride
            raise InputError(
                f"--tokenize.image-size {image_size}: the tokenizer's stride {self.stride} does not divide it; take "
                f"{below} or {below + self.stride}."
            )


@dataclass(frozen=True, kw_only=True)
class FitPCATokenizer(Fit):
    """Principal components of square patches, found on the images themselves in one pass."""

    kind: Literal["fit-pca"] = "fit-pca"
    """Principal components of square patches of the pictures: plain latents, no training."""
    components: int = 24
    """Components kept, the channels of the latents; at most 3 for each pixel of a patch."""
    whitening: float = 0.6
    """Power of its deviation that each component is divided by: 0 leaves all as they are, 1 makes variances 1."""

    def check(self, image_size: int) -> None:
        """Raise InputError as `Fit` does, and for more components than a patch has dimensions, or too large a patch."""
        super().check(image_size)
        if self.stride > _LARGEST_PATCH:
            raise InputError(
                f"--tokenizer.stride {self.stride}: components are found of patches of {_LARGEST_PATCH} pixels a side "
                "at most, for their time grows with the sixth power of it"
            )
        if self.components > 3 * self.stride**2:
            raise InputError(
                f"--tokenizer.components {self.components}: a patch of {self.stride} x {self.stride} pixels has "
                f"{3 * self.stride**2} components at most"
            )


@dataclass(frozen=True, kw_only=True)
class FitAutoencoder(Fit):
    """What fitting a small autoencoder takes, whatever its latents are."""

    stride: int = 4
    """Pixels of the image to a latent, along each side; even."""
    width: int = 32
    """Channels of the residual blocks."""
    depth: int = 2
    """Residual blocks in the encoder, and in the decoder."""
    train_steps: int = 600
    """Gradient steps of the fit."""
    batch_size: int = 64
    """Images in each gradient step of the fit."""
    lr: float = 4e-3
    """Peak learning rate of the fit, in one cycle."""
    seed: int = 0
    """Seed of the initial weights, the batches and the posterior noise."""

    @property
    def steps(self) -> int:
        """Gradient steps of the fit."""
        return self.train_steps

    def check(self, image_size: int) -> None:
        """Raise InputError as `Fit` does, and unless the stride is even and the width a multiple of 8."""
        super().check(image_size)
        if self.stride % 2:
            raise InputError(f"--tokenizer.stride {self.stride}: an autoencoder's stride is even: 2, 4, 8, ...")
        if self.width % 8:
            raise InputError(
                f"--tokenizer.width {self.width}: a multiple of 8, for norms are over 8 groups of channels"
            )


@dataclass(frozen=True, kw_only=True)
class FitTokenizer(FitAutoencoder):
    """A small KL autoencoder, fitted on the images themselves."""

    kind: Literal["fit"] = "fit"
    """A small KL autoencoder, fitted on the pictures themselves."""
    channels: int = 16
    """Channels of the latents."""
    kl_weight: float = 3e-2
    """Weight of the KL divergence to a standard normal: more makes a decoder that forgives noisy samples."""


@dataclass(frozen=True, kw_only=True)
class FitQuantizing(FitAutoencoder):
    """What fitting an autoencoder that quantizes takes, at one scale or several."""

    channels: int = 8
    """Channels of the codebook's vectors."""
    codebook_size: int = 256
    """Vectors in the codebook."""
    codebook_decay: float = 0.99
    """Decay, at each step, of the moving averages that the codebook's vectors are."""
    commitment: float = 0.25
    """Weight of the squared distance of a latent to its vector, which moves the latent."""

    perceptual: float = added(default=0.0)
    """Weight of the distance in VGG-16's features (--tokenizer.vgg16); 0 leaves it out."""
    vgg16: str = file_at(default="")
    """File of torchvision's vgg16-397923af.pth, for the perceptual distance."""
    adversarial: float = added(default=0.0)
    """Weight of what decoded pictures lose for being told from real ones by a patch discriminator; 0 leaves it out."""
    adversarial_from: float = added(default=0.5)
    """Share of the fit's steps after which the discriminator has a say."""

    def check(self, image_size: int) -> None:
        """Raise InputError as `Fit` does, for a codebook without choice, and where VGG-16 is wanted and not there."""
        super().check(image_size)
        if self.codebook_size < 2:
            raise InputError(f"--tokenizer.codebook-size {self.codebook_size}: a codebook has at least 2 vectors")
        if not self.perceptual:
            return
        if image_size < _LEAST_FOR_VGG16:
            raise InputError(
                f"--tokenizer.perceptual {self.perceptual}: VGG-16 needs images of {_LEAST_FOR_VGG16} px or more, "
                f"--tokenize.image-size is {image_size}"
            )
        if not self.vgg16 or not Path(self.vgg16).is_file() or not _begins(Path(self.vgg16), VGG16_DIGEST):
            raise InputError(
                f"--tokenizer.vgg16 {self.vgg16!r}: --tokenizer.perceptual needs torchvision's vgg16-{VGG16_DIGEST}.pth"
            )


def _begins(file: Path, digest: str) -> bool:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest().startswith(digest)


@dataclass(frozen=True, kw_only=True)
class FitVQTokenizer(FitQuantizing):
    """A small vector-quantizing autoencoder (VQ-VAE), fitted on the images themselves."""

    kind: Literal["fit-vq"] = "fit-vq"
    """A small VQ-VAE, fitted on the pictures themselves: tokens are codes."""


@dataclass(frozen=True, kw_only=True)
class FitMultiScaleTokenizer(FitQuantizing):
    """A small autoencoder that quantizes what coarser scales left (VAR), fitted on the images themselves."""

    kind: Literal["fit-multiscale"] = "fit-multiscale"
    """A small autoencoder with VAR's residual quantizer: tokens are codes at several scales, coarse to fine."""
    scales: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Side of each scale's square grid, coarse to fine; the last is the image's side over the stride."""
    phis: int = 4
    """Convolutions that the scales share, which refine what each adds."""

    def check(self, image_size: int) -> None:
        """Raise InputError unless the scales grow to the size of the feature map, and all fits as in a VQ-VAE."""
        super().check(image_size)
        side = image_size // self.stride
        grow = list(self.scales) == sorted(set(self.scales)) and len(self.scales) > 1
        if not grow or self.scales[0] < 1 or self.scales[-1] != side:
            raise InputError(
                f"--tokenizer.scales {' '.join(map(str, self.scales))}: two or more sides that grow, from 1 or more to "
                f"that of the feature map, which is {side} at --tokenize.image-size {image_size} and "
                f"--tokenizer.stride {self.stride}"
            )
        if not 1 <= self.phis <= len(self.scales):
            raise InputError(f"--tokenizer.phis {self.phis}: from 1 to the number of scales, {len(self.scales)}")
