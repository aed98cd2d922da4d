"""Which model anybody's images are given: how they are cut into tokens, and which trunk and head draw those.

Pure functions of what the tokenizer makes, of the pictures' number and of the budget (pipeline/own_images.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from infra.errors import InputError
from train.models.config import Architecture, Model, trunk
from train.models.heads import CategoricalHead, DiffusionHead, Head, NadeHead
from train.models.tokens import Form
from train.models.trunks import CausalTrunk, NextScaleTrunk, Trunk

_FEW_TOKENS = 16
"""Up to as many, of one grid, are drawn in raster order: a short training learns it several times as well as any."""
_HEAD_DEPTH, _BATCH_MUL = 3, 4


@dataclass(frozen=True)
class Network:
    """A size of model, and how many pictures it takes for it to be worth while."""

    pictures: int
    width: int
    depth: int
    """Blocks in the encoder, and in the decoder; of one stack, twice as many."""
    heads: int
    head_width: int
    lr: float

    def operations(self, cut: "Cut", batch: int) -> float:
        """Return the operations of a training step: 6 a weight and row, 12 w^2 weights a block, 5 w^2 one of the
        Diffusion Loss's; other heads are small."""
        blocks = 12 * self.width**2 * 2 * self.depth * (cut.tokens + cut.buffer)
        head = 5 * self.head_width**2 * _HEAD_DEPTH * cut.tokens * _BATCH_MUL
        return 6.0 * batch * (blocks + (head if cut.form == "continuous tokens" else 0))


NETWORKS = (
    Network(0, 160, 4, 4, 256, 2e-3),
    Network(1000, 256, 4, 4, 512, 1e-3),
    Network(5_000, 384, 6, 6, 512, 6e-4),
    Network(20_000, 512, 8, 8, 768, 4e-4),
    Network(100_000, 768, 12, 12, 1024, 2e-4),
)
"""By size; the last one's trunk is MAR-B's."""
_DROPPING = 384  # width from which a trunk learns pictures by heart soon enough to need dropout
_HEADS: Mapping[Form, Callable[[Network], Head]] = {
    "continuous tokens": lambda of: DiffusionHead(width=of.head_width, depth=_HEAD_DEPTH, batch_mul=_BATCH_MUL),
    "codes": lambda _: CategoricalHead(),
    "sub-pixels": lambda _: NadeHead(),
}
"""What draws the tokens that the tokenizer makes."""


@dataclass(frozen=True)
class Cut:
    """How a picture is cut into tokens."""

    tokens: int
    patch: int
    """Latents of a token, along each side."""
    form: Form
    scales: int
    """Of a tokenizer of codes at several, else 0."""

    @classmethod
    def of(cls, made: Model, most_tokens: int, size: int) -> "Cut":
        """Return the cut of what a tokenizer made of a picture of `size` pixels: codes as they are, else by the
        smallest patch that leaves few enough tokens. Raises InputError where one token alone would be left."""
        if made.tokens.form == "codes":
            patch, tokens = 1, made.num_tokens
        else:
            patch, tokens = _patched(made.latent_size, most_tokens)
        if tokens == 1:
            stride, larger = size // made.latent_size, made.latent_size + 1
            while _patched(larger, most_tokens)[1] == 1:
                larger += 1
            raise InputError(
                f"--tokenize.image-size {size}: at the tokenizer's stride of {stride} one token alone would be left of "
                f"a picture, and nothing to predict from it. Take {larger * stride}, or a tokenizer of another stride "
                "(--tokenizer.stride)."
            )
        return cls(tokens, patch, made.tokens.form, len(made.tokens.together))

    @property
    def order(self) -> Literal["scale by scale", "row by row", "any order"]:
        """How the tokens are drawn."""
        return "scale by scale" if self.scales else "row by row" if self.tokens <= _FEW_TOKENS else "any order"

    @property
    def buffer(self) -> int:
        """Rows that hold the class."""
        return {"scale by scale": 0, "row by row": 1, "any order": min(64, self.tokens // 4)}[self.order]


def _patched(side: int, most_tokens: int) -> tuple[int, int]:
    """Return the smallest patch that leaves no more than so many tokens, and how many it leaves."""
    fitting = (patch for patch in range(1, side + 1) if side % patch == 0 and (side // patch) ** 2 <= most_tokens)
    patch = next(fitting)
    return patch, (side // patch) ** 2


def network_of(largest: int, pictures: int) -> Network:
    """Return the largest network up to a place among NETWORKS that so many pictures are enough for."""
    return [network for network in NETWORKS[: largest + 1] if network.pictures <= pictures][-1]


def architecture(network: Network, cut: Cut, *, conditional: bool) -> Architecture:
    """Return the model of this size for tokens cut like this; without classes none is dropped."""
    return Architecture(
        trunk=_trunk(network, cut), head=_HEADS[cut.form](network), patch_size=cut.patch,
        label_drop=0.1 if conditional else 0.0,
    )  # fmt: skip


def _trunk(network: Network, cut: Cut) -> Trunk:
    stack = {"width": network.width, "depth": 2 * network.depth, "heads": network.heads}
    dropout = 0.1 if network.width >= _DROPPING else 0.0
    if cut.order == "scale by scale":
        return NextScaleTrunk(**stack, drop_path=dropout * stack["depth"] / 24)
    if cut.order == "row by row":
        return CausalTrunk(**stack, order="raster", dropout=dropout, buffer_size=cut.buffer)
    masked = trunk(network.width, network.depth, network.heads)
    return replace(masked, buffer_size=cut.buffer, dropout=dropout)
