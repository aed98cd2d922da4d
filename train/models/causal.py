"""Causal autoregressive models on continuous tokens: the AR rows of Table 1 in Li et al. 2024.

One stack of causal blocks reads the class rows, then the tokens in generation order; the row of a token
yields the condition of the next one. Each row is told the position that it must predict, which a random
order needs. While sampling, keys and values of past rows are cached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.transformer import KeyValueCache, take_rows


@dataclass
class _Generation:
    class_vectors: Tensor
    order: Tensor
    caches: list[KeyValueCache]
    rows_read: int = 0


class CausalAR(Autoregressor):
    """Random or raster order, one token a step; the order is the caller's."""

    def __init__(self, config: Model) -> None:
        super().__init__(config, condition_width=config.encoder_width)
        width = config.encoder_width
        self.pos_embed_learned = nn.Parameter(torch.empty(1, config.buffer_size + config.num_tokens, width))
        self.target_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, width))
        depth = config.encoder_depth + config.decoder_depth
        self.causal_blocks = self.blocks(width, config.encoder_heads, depth)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.initialise()

    def rows(self, tokens: Tensor, class_vectors: Tensor, order: Tensor) -> Tensor:
        """Return the input rows (B, buffer + L - 1, D): class rows, then all tokens but the last of the order."""
        buffer, batch = self.config.buffer_size, len(tokens)
        class_rows = class_vectors[:, None].expand(-1, buffer, -1) + self.pos_embed_learned[:, :buffer]
        read = order[:, :-1]
        positions = self.pos_embed_learned[:, buffer:].expand(batch, -1, -1)
        token_rows = self.z_proj(take_rows(tokens, read)) + take_rows(positions, read)
        predicted = take_rows(self.target_pos_embed_learned.expand(batch, -1, -1), order)
        start, last_class_row = class_rows[:, :-1], class_rows[:, -1:]
        return self.z_proj_ln(torch.cat([start, torch.cat([last_class_row, token_rows], 1) + predicted], 1))

    def read(self, rows: Tensor, caches: list[KeyValueCache] | None) -> Tensor:
        """Run the blocks over rows (B, N, D); with caches, after the rows read before."""
        capacity = self.config.buffer_size + self.config.num_tokens
        for index, block in enumerate(self.causal_blocks):
            rows = block(rows, causal=True, cache=caches[index] if caches else None, capacity=capacity)
        return self.norm(rows)

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the condition (B, L - num_visible, D) of each token after the visible ones, by position."""
        read = self.read(self.rows(tokens, class_vectors, order), None)
        return self._by_position(read[:, self.config.buffer_size - 1 + num_visible :], order[:, num_visible:])

    def begin(self, class_vectors: Tensor, order: Tensor) -> _Generation:
        """Return the state of a generation, with empty caches."""
        return _Generation(class_vectors, order, [KeyValueCache() for _ in self.causal_blocks])

    def conditions(self, state: _Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, 1, D) of the token order[start], reading only rows not read before."""
        if stop != start + 1:
            raise ValueError(
                f"a causal model predicts one token a step, not {stop - start}: ar_steps must be the tokens"
            )
        rows = self.rows(tokens, state.class_vectors, state.order)
        end = self.config.buffer_size + start
        read = self.read(rows[:, state.rows_read : end], state.caches)
        state.rows_read = end
        return self._by_position(read[:, -1:], state.order[:, start:stop])

    def _by_position(self, read: Tensor, targets: Tensor) -> Tensor:
        """Add the target's position and sort rows by it, as the head and the sampler expect."""
        positions = take_rows(self.diffusion_pos_embed_learned.expand(len(read), -1, -1), targets)
        return take_rows(read + positions, targets.argsort(1))
