"""What a model is: its architecture, the published ones among them, and its fit to the data. Imports not even torch."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from train.models.heads import DiffusionHead, Head
from train.models.tokens import ContinuousTokens, Tokens
from train.models.trunks import MaskedTrunk, Trunk


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a recipe chooses of an autoregressive model. Defaults: the published trunk of MAR-B."""

    trunk: Trunk = field(default_factory=MaskedTrunk)
    """What comes next: the network that turns the tokens known so far into conditions."""
    head: Head = field(default_factory=DiffusionHead)
    """From which distribution: the network that draws a token given its condition."""
    patch_size: int = 1
    """Side p of the p x p latents that make a token."""
    label_drop: float = 0.1
    """Share of training images whose class is replaced by the null class: what guidance needs."""

    def on(self, **data: Any) -> "Model":  # noqa: ANN401
        """Return the model of this architecture on data with these fields of `Model`."""
        return Model(**{item.name: getattr(self, item.name) for item in fields(Architecture)}, **data)


@dataclass(frozen=True, kw_only=True)
class Model(Architecture):
    """An architecture together with what the data and the tokenizer decide: all that it takes to build the network."""

    latent_size: int
    """Side of the square latents."""
    latent_channels: int
    """Channels of the latents."""
    num_classes: int
    """Class labels 0..num_classes-1."""
    tokens: Tokens = field(default_factory=ContinuousTokens)
    """What a token is."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        return self.tokens.grid(self.latent_size // self.patch_size)

    @property
    def num_tokens(self) -> int:
        """L, tokens of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image's latents."""
        rows, columns = self.grid
        return self.latent_channels, rows * self.patch_size, columns * self.patch_size

    @property
    def token_channels(self) -> int:
        """C, numbers in a token."""
        return self.latent_channels * self.patch_size**2

    def check(self) -> None:
        """Raise ValueError, beginning with the flag of a field of the architecture, unless all fits together."""
        if self.patch_size < 1:
            raise ValueError(f"patch-size {self.patch_size} is below 1")
        _check_share("label-drop", self.label_drop)
        for prefix, part in (("trunk.", self.trunk), ("head.", self.head)):
            _check_sizes(part, prefix)
        if self.latent_size % self.patch_size:
            raise ValueError(
                f"patch-size {self.patch_size} does not divide the size of the latents, {self.latent_size}"
            )
        self.tokens.check(self.patch_size)
        try:
            self.trunk.check()
        except ValueError as error:
            raise ValueError(f"trunk.{error}") from None
        if self.trunk.predicts != self.tokens.layout:
            raise ValueError(
                f"trunk.kind {self.trunk.kind}: this trunk predicts {self.trunk.predicts}, but the tokenizer makes "
                f"{self.tokens.layout}"
            )
        if self.head.draws != self.tokens.form:
            raise ValueError(
                f"head.kind {self.head.kind}: this head draws {self.head.draws}, but the tokenizer makes "
                f"{self.tokens.form}"
            )


def _check_sizes(part: Trunk | Head, prefix: str) -> None:
    """Raise ValueError, beginning with the field's flag, unless each size of a part is 1 or more, each share one."""
    numbers = {item.name: getattr(part, item.name) for item in fields(part) if item.type is int}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{prefix}{name.replace('_', '-')} {value} is below 1")
    for name in ("dropout", "mask_ratio_min"):
        _check_share(f"{prefix}{name.replace('_', '-')}", getattr(part, name, 0.0))
    hidden = getattr(part, "mlp_ratio", 1.0) * min((of for name, of in numbers.items() if "width" in name), default=1)
    if not 1 <= hidden < math.inf:
        raise ValueError(f"{prefix}mlp-ratio {part.mlp_ratio} leaves the MLP without channels")


def _check_share(flag: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{flag} {value} must be from 0 to 1")


def trunk(width: int, depth: int, heads: int) -> MaskedTrunk:
    """Return a masked trunk with the same width, depth and heads in encoder and decoder."""
    return MaskedTrunk(
        encoder_width=width, encoder_depth=depth, encoder_heads=heads,
        decoder_width=width, decoder_depth=depth, decoder_heads=heads,
    )  # fmt: skip


def mar_base() -> Architecture:
    """MAR-B: 208 M parameters, FID-50K 2.31 at CFG 2.9 as published."""
    return Architecture(trunk=trunk(768, 12, 12), head=DiffusionHead(width=1024, depth=6))


def mar_large() -> Architecture:
    """MAR-L: 479 M parameters, FID-50K 1.78 at CFG 3.0 as published."""
    return Architecture(trunk=trunk(1024, 16, 16), head=DiffusionHead(width=1280, depth=8))


def mar_huge() -> Architecture:
    """MAR-H: 943 M parameters, FID-50K 1.55 at CFG 3.2 as published."""
    return Architecture(trunk=trunk(1280, 20, 16), head=DiffusionHead(width=1536, depth=12))


def tiny(width: int = 160, depth: int = 4, heads: int = 4, head_width: int = 192, head_depth: int = 3) -> Architecture:
    """A model that trains in minutes on a laptop's processor."""
    small = replace(trunk(width, depth, heads), buffer_size=8, dropout=0.0)
    return Architecture(trunk=small, head=DiffusionHead(width=head_width, depth=head_depth))
