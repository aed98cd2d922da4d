"""The trunks there are: what comes next. How much each predicts at a time, in which orders, and how it is trained.

The network of each is a module of its own. An order is the positions of an image's tokens, the first generated first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, Literal

from train.models.tokens import Layout

if TYPE_CHECKING:
    from train.models.autoregressor import Autoregressor
    from train.models.config import Model

_MEAN, _STD = 1.0, 0.25  # of the masking ratio's truncated normal, published recipe


@dataclass(frozen=True, kw_only=True)
class MaskedTrunk:
    """MAR: a bidirectional encoder and decoder that predict many tokens a step, in any order."""

    kind: Literal["masked"] = "masked"
    """The published MAR: encoder and decoder see all tokens at hand."""
    buffer_size: int = 64
    """Rows holding the class vector in front of the tokens."""
    encoder_width: int = 768
    """Channels of the encoder."""
    encoder_depth: int = 12
    """Blocks of the encoder."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_width: int = 768
    """Channels of the decoder."""
    decoder_depth: int = 12
    """Blocks of the decoder."""
    decoder_heads: int = 12
    """Attention heads of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over the block's width."""
    dropout: float = 0.1
    """Share dropped in attention and after each projection, while training."""
    mask_ratio_min: float = 0.7
    """Smallest masked share of an image in training."""
    order: ClassVar[Literal["random"]] = "random"
    predicts: ClassVar[Layout] = "tokens of one grid"
    teacher_forced: ClassVar[bool] = False
    """One pass tells every token's condition from those before it in the order."""

    def build(self, model: "Model") -> "Autoregressor":
        """Return the freshly initialised network of a model with this trunk."""
        from train.models.mar import MAR

        return MAR(model, self)

    def check(self) -> None:
        """Raise ValueError, beginning with the field's flag, unless the sizes fit together."""
        for name in ("encoder", "decoder"):
            _check_heads(name + "-", getattr(self, f"{name}_width"), getattr(self, f"{name}_heads"))

    def predicted(self, uniform: float, num_tokens: int) -> int:
        """Return how many tokens of each image a training step masks, drawn by `uniform` in [0, 1)."""
        return num_masked(uniform, num_tokens, self.mask_ratio_min)

    def training_order(self, permutation: Callable[[int], Sequence[int]], num_tokens: int) -> Sequence[int]:
        """Return an image's order in training."""
        return ORDERS[self.order](permutation, num_tokens)

    def least_steps(self, to_generate: int, together: Sequence[int]) -> int:  # noqa: ARG002
        """Return the fewest steps in which so many tokens can be generated: all at once."""
        return 1

    def check_sampling(
        self,
        order: str,  # noqa: ARG002
        ar_steps: int,
        kept: Sequence[bool],
        together: Sequence[int],  # noqa: ARG002
    ) -> None:
        """Raise ValueError unless each step can reveal a token; any order, and any kept tokens."""
        if not 1 <= ar_steps <= kept.count(False):
            raise ValueError(f"ar_steps is {ar_steps}; it must be from 1 to the {kept.count(False)} tokens to generate")


class OneByOne:
    """What trunks have in common that predict one token a step, and in training all tokens of an image at once."""

    order: Literal["random", "raster"] = "raster"
    predicts: ClassVar[Layout] = "tokens of one grid"
    teacher_forced: ClassVar[bool] = True

    def predicted(self, uniform: float, num_tokens: int) -> int:  # noqa: ARG002  nothing is drawn
        """Return how many tokens of each image a training step predicts: all."""
        return num_tokens

    def training_order(self, permutation: Callable[[int], Sequence[int]], num_tokens: int) -> Sequence[int]:
        """Return an image's order in training."""
        return ORDERS[self.order](permutation, num_tokens)

    def least_steps(self, to_generate: int, together: Sequence[int]) -> int:  # noqa: ARG002
        """Return the fewest steps in which so many tokens can be generated: one a token."""
        return to_generate

    def check_sampling(self, order: str, ar_steps: int, kept: Sequence[bool], together: Sequence[int]) -> None:
        """Raise ValueError for an order, a number of steps, or kept tokens (by position) that it cannot go on with."""
        to_generate, given = kept.count(False), kept.count(True)
        if ar_steps != self.least_steps(to_generate, together):
            raise ValueError(f"ar_steps is {ar_steps}; a causal model needs one a token: {to_generate}")
        if order == "confidence":
            raise ValueError(
                "order is 'confidence'; a causal model must be told each position before its token is drawn"
            )
        if self.order == "raster" and order != "raster":
            raise ValueError(f"order is '{order}'; this model was trained on order 'raster' alone")
        if self.order == "raster" and not all(kept[:given]):
            raise ValueError("this model can only go on after kept tokens that come first in raster order")


@dataclass(frozen=True, kw_only=True)
class CausalTrunk(OneByOne):
    """One causal stack that predicts one token a step (Li et al. 2024, Table 1: AR)."""

    kind: Literal["causal"] = "causal"
    """One causal stack, one token a step."""
    order: Literal["random", "raster"] = "random"
    """random: trained on, and able to generate in, any order; raster: row by row only."""
    buffer_size: int = 64
    """Rows holding the class vector in front of the tokens."""
    width: int = 768
    """Channels of the stack."""
    depth: int = 24
    """Blocks of the stack."""
    heads: int = 12
    """Attention heads of the stack."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over the block's width."""
    dropout: float = 0.1
    """Share dropped in attention and after each projection, while training."""

    def build(self, model: "Model") -> "Autoregressor":
        """Return the freshly initialised network of a model with this trunk."""
        from train.models.causal import CausalAR

        return CausalAR(model, self)

    def check(self) -> None:
        """Raise ValueError, beginning with the field's flag, unless the sizes fit together."""
        _check_heads("", self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class ConvolutionalTrunk(OneByOne):
    """Gated PixelCNN: the next token in raster order, by masked convolutions."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    """Gated PixelCNN, one token a step in raster order; on codes the prior of a VQ-VAE."""
    width: int = 128
    """Channels of both stacks."""
    depth: int = 12
    """Gated layers of both stacks."""
    kernel: int = 3
    """Side of the kernels, odd; a token sees all before it when depth x (kernel // 2) reaches across the grid."""
    buffer_size: ClassVar[int] = 0

    def build(self, model: "Model") -> "Autoregressor":
        """Return the freshly initialised network of a model with this trunk."""
        from train.models.pixelcnn import GatedPixelCNN

        return GatedPixelCNN(model, self)

    def check(self) -> None:
        """Raise ValueError, beginning with the field's flag, unless the kernel is odd and there are two layers."""
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, and at least 3")
        if self.depth < 2:
            raise ValueError(f"depth {self.depth}: gated layers are at least 2")


@dataclass(frozen=True, kw_only=True)
class RecurrentTrunk(OneByOne):
    """Pixel RNN: the next token in raster order, by an LSTM."""

    kind: Literal["rnn"] = "rnn"
    """Pixel RNN: an LSTM over the tokens in raster order; a step costs the same wherever it is."""
    width: int = 256
    """Channels of the hidden states."""
    depth: int = 2
    """Layers of the LSTM."""
    buffer_size: ClassVar[int] = 0

    def build(self, model: "Model") -> "Autoregressor":
        """Return the freshly initialised network of a model with this trunk."""
        from train.models.rnn import PixelRNN

        return PixelRNN(model, self)

    def check(self) -> None:
        """Take any number of channels and layers."""


@dataclass(frozen=True, kw_only=True)
class NextScaleTrunk:
    """VAR: all codes of the next scale, given those of the coarser ones. Defaults: d16."""

    kind: Literal["next-scale"] = "next-scale"
    """VAR: the codes of a scale at once, coarse to fine, from a tokenizer of codes at several scales."""
    width: int = 1024
    """Channels of the stack."""
    depth: int = 16
    """Blocks of the stack."""
    heads: int = 16
    """Attention heads of the stack."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over the block's width."""
    adaln: Literal["block", "shared"] = "block"
    """How the class sets the norms and gates of the blocks: by a projection of each, or by one that they share."""
    l2_norm: bool = True
    """Queries and keys of unit length, and a learned temperature for each head."""
    drop_path: float = 1 / 15
    """Share of images that skip the last block while training; it grows with depth from 0."""
    gate_init: float = 1e-3
    """Factor on the initial weights of the gates: small, so that blocks begin as almost nothing."""
    buffer_size: ClassVar[int] = 0
    order: ClassVar[Literal["raster"]] = "raster"
    predicts: ClassVar[Layout] = "codes at several scales"
    teacher_forced: ClassVar[bool] = True

    def build(self, model: "Model") -> "Autoregressor":
        """Return the freshly initialised network of a model with this trunk."""
        from train.models.var import VAR

        return VAR(model, self)

    def check(self) -> None:
        """Raise ValueError, beginning with the field's flag, unless the sizes fit together."""
        _check_heads("", self.width, self.heads)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop-path {self.drop_path} must be at least 0, and below 1")

    def predicted(self, uniform: float, num_tokens: int) -> int:  # noqa: ARG002  nothing is drawn
        """Return how many tokens of each image a training step predicts: all."""
        return num_tokens

    def training_order(self, permutation: Callable[[int], Sequence[int]], num_tokens: int) -> Sequence[int]:
        """Return an image's order in training: coarse to fine, row by row."""
        return ORDERS[self.order](permutation, num_tokens)

    def least_steps(self, to_generate: int, together: Sequence[int]) -> int:  # noqa: ARG002
        """Return the fewest steps in which so many tokens can be generated: one a scale."""
        return len(together)

    def check_sampling(
        self,
        order: str,
        ar_steps: int,
        kept: Sequence[bool],  # noqa: ARG002
        together: Sequence[int],
    ) -> None:
        """Raise ValueError for an order or a number of steps other than its own; any tokens may be kept."""
        if order != "raster":
            raise ValueError(f"order is '{order}'; a next-scale model goes coarse to fine: 'raster'")
        if ar_steps != len(together):
            raise ValueError(f"ar_steps is {ar_steps}; a next-scale model needs one a scale: {len(together)}")


Trunk = MaskedTrunk | CausalTrunk | ConvolutionalTrunk | RecurrentTrunk | NextScaleTrunk
ORDERS: dict[str, Callable[[Callable[[int], Sequence[int]], int], Sequence[int]]] = {
    "random": lambda permutation, length: permutation(length),
    "raster": lambda _, length: range(length),
}


def num_masked(uniform: float, num_tokens: int, mask_ratio_min: float) -> int:
    """Return how many tokens of an image are masked in a training step (Li et al. 2024, section 4.2).

    The ratio is a normal (1.0, 0.25) truncated to [mask_ratio_min, 1], by its inverse distribution
    function at `uniform` in [0, 1): one number per step, shared by the batch, keeps shapes equal.
    """
    normal = NormalDist()
    low = normal.cdf((mask_ratio_min - _MEAN) / _STD)
    ratio = _MEAN + _STD * normal.inv_cdf(min(max(low + uniform * (0.5 - low), 1e-12), 0.5))
    return min(max(math.ceil(num_tokens * ratio), 1), num_tokens)


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name}heads {heads} does not divide {name}width {width}")
