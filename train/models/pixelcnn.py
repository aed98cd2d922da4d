"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): the next token by masked convolutions, in raster order.

Two stacks, so that nothing before a token is in a blind spot: the vertical one sees the rows above, the horizontal one
the token's own row up to it, and, through a link, the vertical one's row above. On codes it is the prior of a VQ-VAE.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.autoregressor import GridAutoregressor
from train.models.config import Model
from train.models.transformer import take_rows
from train.models.trunks import ConvolutionalTrunk


class Stacks(NamedTuple):
    """(B, D, H, W) each."""

    vertical: Tensor
    """At (i, j): of rows up to i, with columns on both sides; enters what is predicted one row lower only."""
    horizontal: Tensor
    """At (i, j): of all rows above, and of row i before j."""
    skip: Tensor
    """Sum of what the layers found."""


def gated(x: Tensor) -> Tensor:
    """Return tanh(a) * sigmoid(b) of (B, 2 D, H, W)."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks. The first must not see a token where it is predicted: its row kernel ends before it."""

    def __init__(self, width: int, kernel: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.reach, self.first, self.last = kernel // 2, first, last
        self.above = nn.Conv2d(width, 2 * width, (self.reach + 1, kernel))
        self.before = nn.Conv2d(width, 2 * width, (1, self.reach + (not first)))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.of_class = nn.Linear(width, 4 * width)
        self.skip = nn.Conv2d(width, width, 1)
        self.residual = None if last else nn.Conv2d(width, width, 1)

    def forward(self, stacks: Stacks, class_vectors: Tensor) -> Stacks:
        """Map both stacks, given (B, D) of the class: a bias in every place."""
        reach = self.reach
        of_vertical, of_horizontal = self.biases(class_vectors)
        above = self.above(F.pad(stacks.vertical, (reach, reach, reach, 0)))
        before = self.before(F.pad(stacks.horizontal, (reach, 0, 0, 0)))[..., : above.shape[-1]]
        one_row_lower = F.pad(above, (0, 0, 1, 0))[:, :, :-1]
        found = gated(before + self.link(one_row_lower) + of_horizontal)
        return Stacks(
            gated(above + of_vertical), self.onwards(found, stacks.horizontal), stacks.skip + self.skip(found)
        )

    def biases(self, class_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the class (B, D) adds to the vertical and to the horizontal stack: (B, 2 D, 1, 1) each."""
        of_vertical, of_horizontal = self.of_class(class_vectors)[:, :, None, None].chunk(2, 1)
        return of_vertical, of_horizontal

    def onwards(self, found: Tensor, horizontal: Tensor) -> Tensor:
        """Return the horizontal stack after this layer, of what it found and the stack before it."""
        if self.residual is None:
            return horizontal
        return self.residual(found) + (0 if self.first else horizontal)  # of the first layer it is the tokens


class GatedCache:
    """What a layer keeps of the places before: a step then costs each layer one place, and at a row's end one row."""

    def __init__(self, layer: GatedLayer, class_vectors: Tensor, side: int) -> None:
        batch, width = class_vectors.shape
        self.layer, self.biases = layer, layer.biases(class_vectors)
        self.vertical = class_vectors.new_zeros(batch, width, layer.reach + 1, side + 2 * layer.reach)
        self.horizontal = class_vectors.new_zeros(batch, width, 1, side + layer.reach)
        self.linked = layer.link(class_vectors.new_zeros(batch, 2 * width, 1, side))

    def row(self, vertical: Tensor) -> Tensor:
        """Take the row (B, D, 1, W) of the vertical stack that is whole now; returns that of the next layer."""
        reach = self.layer.reach
        self.vertical = torch.cat([self.vertical[:, :, 1:], F.pad(vertical, (reach, reach))], 2)
        above = self.layer.above(self.vertical)
        self.linked = self.layer.link(above)
        self.horizontal = torch.zeros_like(self.horizontal)
        return gated(above + self.biases[0])

    def place(self, column: int, horizontal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take the horizontal stack (B, D, 1, 1) at a place of the row; returns that of the next layer, and the skip.

        The first layer takes nothing: it must not see the token.
        """
        layer, last = self.layer, column + self.layer.reach
        if horizontal is not None:
            self.put(column, horizontal)
        before = layer.before(self.horizontal[..., column : last + (not layer.first)])
        found = gated(before + self.linked[..., column : column + 1] + self.biases[1])
        return layer.onwards(found, self.horizontal[..., last : last + 1]), layer.skip(found)

    def put(self, column: int, horizontal: Tensor) -> None:
        """Keep the horizontal stack (B, D, 1, 1) at a place of the row."""
        last = column + self.layer.reach
        self.horizontal[..., last : last + 1] = horizontal


@dataclass
class _Generation:
    caches: list[GatedCache]
    places: int = 0
    """Places reached."""


class GatedPixelCNN(GridAutoregressor):
    """Raster order, one token a step, which costs each layer one place; training runs all places at once."""

    def __init__(self, config: Model, trunk: ConvolutionalTrunk) -> None:
        super().__init__(config, trunk.width, condition_width=trunk.width)
        self.side = config.latent_size // config.patch_size
        self.layers = nn.ModuleList(
            GatedLayer(trunk.width, trunk.kernel, first=index == 0, last=index == trunk.depth - 1)
            for index in range(trunk.depth)
        )
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.initialise()

    def read(self, tokens: Tensor, class_vectors: Tensor) -> Tensor:
        """Return what is known of each token (B, L, D) from those before it in raster order."""
        embedded = self.z_proj_ln(self.z_proj(tokens)).transpose(1, 2).unflatten(2, (self.side, self.side))
        stacks = Stacks(embedded, embedded, torch.zeros_like(embedded))
        for layer in self.layers:
            stacks = layer(stacks, class_vectors)
        return self.norm(F.relu(stacks.skip).flatten(2).transpose(1, 2)) + self.diffusion_pos_embed_learned

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the condition (B, L - num_visible, D) of each token after the visible ones, by position."""
        return take_rows(self.read(tokens, class_vectors), order[:, num_visible:].sort(1).values)

    def begin(self, class_vectors: Tensor, order: Tensor) -> _Generation:  # noqa: ARG002  always the same
        """Return the state of a generation that has reached no place."""
        return _Generation([GatedCache(layer, class_vectors, self.side) for layer in self.layers])

    def conditions(self, state: _Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, 1, D) of the token `start`, computing only places not reached before."""
        if stop != start + 1:
            raise ValueError(f"a PixelCNN predicts one token a step, not {stop - start}")
        first = max(state.places - 1, 0)
        embedded = self.z_proj_ln(self.z_proj(tokens[:, first:start]))
        for place in range(state.places, stop):
            skip = self._reach(state.caches, place, embedded[:, place - 1 - first] if place else None)
        state.places = stop
        return self.norm(F.relu(skip).flatten(2).transpose(1, 2)) + self.diffusion_pos_embed_learned[:, start:stop]

    def _reach(self, caches: list[GatedCache], place: int, before: Tensor | None) -> Tensor:
        """Return what the layers skip to the output (B, D, 1, 1) at a place, given the token before it (B, D)."""
        column = place % self.side
        if before is not None:
            caches[0].put((column - 1) % self.side, before[:, :, None, None])
        if place and not column:
            vertical = caches[0].horizontal[..., caches[0].layer.reach :]
            for cache in caches:
                vertical = cache.row(vertical)
        horizontal, skip = caches[0].place(column, None)
        for cache in caches[1:]:
            horizontal, skipped = cache.place(column, horizontal)
            skip = skip + skipped
        return skip
