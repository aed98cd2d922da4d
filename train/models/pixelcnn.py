"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): the next token by masked convolutions, in raster order.

Two stacks, so that nothing before a token is in a blind spot: the vertical one sees the rows above, the horizontal one
the token's own row up to it, and, through a link, the vertical one's row above. On codes it is the prior of a VQ-VAE.
"""

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
        of_vertical, of_horizontal = self.of_class(class_vectors)[:, :, None, None].chunk(2, 1)
        above = self.above(F.pad(stacks.vertical, (reach, reach, reach, 0)))
        before = self.before(F.pad(stacks.horizontal, (reach, 0, 0, 0)))[..., : above.shape[-1]]
        one_row_lower = F.pad(above, (0, 0, 1, 0))[:, :, :-1]
        found = gated(before + self.link(one_row_lower) + of_horizontal)
        horizontal = stacks.horizontal if self.residual is None else self.residual(found)
        if not self.first and not self.last:  # of the first layer it is the tokens themselves
            horizontal = horizontal + stacks.horizontal
        return Stacks(gated(above + of_vertical), horizontal, stacks.skip + self.skip(found))


class GatedPixelCNN(GridAutoregressor):
    """Raster order, one token a step; every step runs the whole stack, which training does once for all tokens."""

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

    def begin(self, class_vectors: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stays the same in a generation."""
        return class_vectors, order

    def conditions(self, state: tuple[Tensor, Tensor], tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, 1, D) of the token order[start]."""
        class_vectors, order = state
        return take_rows(self.read(tokens, class_vectors), order[:, start:stop].sort(1).values)
