"""What a model is: its architecture, the published ones among them, and its fit to the data. Imports not even torch."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from train.models.heads import DiffusionHead, Head


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a recipe chooses of an autoregressive model on continuous tokens. Defaults: the published trunk of MAR-B."""

    generation: Literal["masked", "random-causal", "raster-causal"] = "masked"
    """masked: MAR, bidirectional, many tokens a step; the causal ones generate one token a step (paper, Table 1)."""
    patch_size: int = 1
    """Side p of the p x p latents that make a token."""
    buffer_size: int = 64
    """Rows holding the class vector in front of the tokens."""
    encoder_width: int = 768
    """Channels of the encoder, and of a causal model's single stack."""
    encoder_depth: int = 12
    """Blocks of the encoder; a causal model stacks encoder_depth + decoder_depth blocks."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_width: int = 768
    """Channels of the decoder (masked only)."""
    decoder_depth: int = 12
    """Blocks of the decoder."""
    decoder_heads: int = 12
    """Attention heads of the decoder (masked only)."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, over the block's width."""
    dropout: float = 0.1
    """Share dropped in attention and after each projection while training."""
    label_drop: float = 0.1
    """Share of training images whose class is replaced by the null class: what guidance needs."""
    mask_ratio_min: float = 0.7
    """Smallest masked share in training (masked only)."""
    head: Head = field(default_factory=DiffusionHead)
    """The per-token loss head."""

    def on(self, *, latent_size: int, latent_channels: int, num_classes: int) -> "Model":
        """Return the model of this architecture on these latents and classes."""
        chosen = {item.name: getattr(self, item.name) for item in fields(Architecture)}
        return Model(**chosen, latent_size=latent_size, latent_channels=latent_channels, num_classes=num_classes)


@dataclass(frozen=True, kw_only=True)
class Model(Architecture):
    """An architecture together with what the data and the tokenizer decide: all that it takes to build the network."""

    latent_size: int
    """Side of the square latents."""
    latent_channels: int
    """Channels of the latents."""
    num_classes: int
    """Class labels 0..num_classes-1."""

    @property
    def num_tokens(self) -> int:
        """L, tokens of an image."""
        return (self.latent_size // self.patch_size) ** 2

    @property
    def token_channels(self) -> int:
        """C, numbers in a token."""
        return self.latent_channels * self.patch_size**2


def trunk(width: int, depth: int, heads: int) -> Architecture:
    """Return an architecture with the same width, depth and heads in encoder and decoder."""
    return replace(
        Architecture(), encoder_width=width, encoder_depth=depth, encoder_heads=heads,
        decoder_width=width, decoder_depth=depth, decoder_heads=heads,
    )  # fmt: skip


def mar_base() -> Architecture:
    """MAR-B: 208 M parameters, FID-50K 2.31 at CFG 2.9 as published."""
    return replace(trunk(768, 12, 12), head=DiffusionHead(width=1024, depth=6))


def mar_large() -> Architecture:
    """MAR-L: 479 M parameters, FID-50K 1.78 at CFG 3.0 as published."""
    return replace(trunk(1024, 16, 16), head=DiffusionHead(width=1280, depth=8))


def mar_huge() -> Architecture:
    """MAR-H: 943 M parameters, FID-50K 1.55 at CFG 3.2 as published."""
    return replace(trunk(1280, 20, 16), head=DiffusionHead(width=1536, depth=12))


def tiny(width: int = 160, depth: int = 4, heads: int = 4, head_width: int = 192, head_depth: int = 3) -> Architecture:
    """A model that trains in minutes on a laptop's processor."""
    small = replace(trunk(width, depth, heads), buffer_size=8, dropout=0.0)
    return replace(small, head=DiffusionHead(width=head_width, depth=head_depth))
