"""The published sizes and the class that builds each kind of model."""

from dataclasses import replace

from train.models.autoregressor import Autoregressor, Model
from train.models.causal import CausalAR
from train.models.head import Head
from train.models.mar import MAR

GENERATIONS = {"masked": MAR, "random-causal": CausalAR, "raster-causal": CausalAR}


def build_model(config: Model) -> Autoregressor:
    """Return a freshly initialised model of this shape."""
    return GENERATIONS[config.generation](config)


def trunk(width: int, depth: int, heads: int) -> Model:
    """Return a shape with the same width, depth and heads in encoder and decoder."""
    return replace(
        Model(), encoder_width=width, encoder_depth=depth, encoder_heads=heads,
        decoder_width=width, decoder_depth=depth, decoder_heads=heads,
    )  # fmt: skip


def mar_base() -> Model:
    """MAR-B: 208 M parameters, FID-50K 2.31 at CFG 2.9 as published."""
    return replace(trunk(768, 12, 12), head=Head(width=1024, depth=6))


def mar_large() -> Model:
    """MAR-L: 479 M parameters, FID-50K 1.78 at CFG 3.0 as published."""
    return replace(trunk(1024, 16, 16), head=Head(width=1280, depth=8))


def mar_huge() -> Model:
    """MAR-H: 943 M parameters, FID-50K 1.55 at CFG 3.2 as published."""
    return replace(trunk(1280, 20, 16), head=Head(width=1536, depth=12))


def tiny(width: int = 160, depth: int = 4, heads: int = 4, head_width: int = 192, head_depth: int = 3) -> Model:
    """A model that trains in minutes on a laptop's processor."""
    small = replace(trunk(width, depth, heads), buffer_size=8, dropout=0.0)
    return replace(small, head=Head(width=head_width, depth=head_depth))
