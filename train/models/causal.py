"""Causal autoregressive models on continuous tokens: the AR rows of Table 1 in Li et al. 2024.

One stack of causal blocks reads the class rows, then the tokens in generation order; the row of a token
yields the condition of the next one. Each row is told the position that it must predict, which a random
order needs. While sampling, keys and values of past rows are cached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.autoregressor import GridAutoregressor
from train.models.config import Model
from train.models.transformer import KeyValueCache, take_rows
from train.models.trunks import CausalTrunk


@dataclass
class _Generation:
    class_vectors: Tensor
    order: Tensor
    caches: list[KeyValueCache]
    rows_read: int = 0


class CausalAR(GridAutoregressor):
    """Random or raster order, one token a step; the order is the caller's."""

    def __init__(self, config: Model, trunk: CausalTrunk) -> None:
        width = trunk.width
        super().__init__(config, width, condition_width=width)
        self.buffer_size, self.capacity = trunk.buffer_size, trunk.buffer_size + config.num_tokens
        self.pos_embed_learned = nn.Parameter(torch.empty(1, self.capacity, width))
        self.target_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, width))
        self.causal_blocks = self.blocks(width, trunk.heads, trunk.depth)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.initialise()

    def rows(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, first: int, stop: int) -> Tensor:
        """Return the input rows (B, stop - first, D): first the class rows, then the tokens in their order.

        Row buffer_size - 1 + k is told the position of the token order[k], which it predicts.
        """
        buffer, batch = self.buffer_size, len(tokens)
        class_rows = class_vectors[:, None] + self.pos_embed_learned[:, first : min(stop, buffer)]
        read = order[:, max(first - buffer, 0) : max(stop - buffer, 0)]
        positions = self.pos_embed_learned[:, buffer:].expand(batch, -1, -1)
        token_rows = self.z_proj(take_rows(tokens, read)) + take_rows(positions, read)
        predicted = order[:, max(first - buffer + 1, 0) : max(stop - buffer + 1, 0)]
        told = take_rows(self.target_pos_embed_learned.expand(batch, -1, -1), predicted)
        plain, telling = torch.cat([class_rows, token_rows], 1).split([stop - first - told.shape[1], told.shape[1]], 1)
        return self.z_proj_ln(torch.cat([plain, telling + told], 1))

    def read(self, rows: Tensor, caches: list[KeyValueCache] | None) -> Tensor:
        """Run the blocks over rows (B, N, D); with caches, after the rows read before."""
        for index, block in enumerate(self.causal_blocks):
            rows = block(rows, causal=True, cache=caches[index] if caches else None, capacity=self.capacity)
        return self.norm(rows)

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the condition (B, L - num_visible, D) of each token after the visible ones, by position."""
        rows = self.rows(tokens, class_vectors, order, 0, self.capacity - 1)  # nothing comes after the last token
        read = self.read(rows, None)
        return self._by_position(read[:, self.buffer_size - 1 + num_visible :], order[:, num_visible:])

    def begin(self, class_vectors: Tensor, order: Tensor) -> _Generation:
        """Return the state of a generation, with empty caches."""
        return _Generation(class_vectors, order, [KeyValueCache() for _ in self.causal_blocks])

    def conditions(self, state: _Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, 1, D) of the token order[start], reading only rows not read before."""
        if stop != start + 1:
            raise ValueError(
                f"a causal model predicts one token a step, not {stop - start}: ar_steps must be the tokens"
            )
        end = self.buffer_size + start
        rows = self.rows(tokens, state.class_vectors, state.order, state.rows_read, end)
        read = self.read(rows, state.caches)
        state.rows_read = end
        return self._by_position(read[:, -1:], state.order[:, start:stop])

    def _by_position(self, read: Tensor, targets: Tensor) -> Tensor:
        """Add the target's position and sort rows by it, as the head and the sampler expect."""
        positions = take_rows(self.diffusion_pos_embed_learned.expand(len(read), -1, -1), targets)
        return take_rows(read + positions, targets.argsort(1))
