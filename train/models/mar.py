"""Masked autoregressive model, MAR (Li et al. 2024, section 4.2): an MAE-like encoder and decoder.

The encoder sees the class and the visible tokens; the decoder adds mask tokens and yields the condition of
each token to predict. Attention is bidirectional, so nothing can be cached between steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.autoregressor import GridAutoregressor
from train.models.config import Model
from train.models.transformer import put_rows, take_rows
from train.models.trunks import MaskedTrunk


@dataclass(frozen=True)
class _Generation:
    class_vectors: Tensor
    order: Tensor


class MAR(GridAutoregressor):
    """Names of parameters are those of the published checkpoints, but for the head (`published.py`)."""

    def __init__(self, config: Model, trunk: MaskedTrunk) -> None:
        super().__init__(config, trunk.encoder_width, condition_width=trunk.decoder_width)
        self.buffer_size = trunk.buffer_size
        rows = trunk.buffer_size + config.num_tokens
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, rows, trunk.encoder_width))
        self.encoder_blocks = self.blocks(trunk.encoder_width, trunk.encoder_heads, trunk.encoder_depth)
        self.encoder_norm = nn.LayerNorm(trunk.encoder_width, eps=1e-6)
        self.decoder_embed = nn.Linear(trunk.encoder_width, trunk.decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, trunk.decoder_width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, rows, trunk.decoder_width))
        self.decoder_blocks = self.blocks(trunk.decoder_width, trunk.decoder_heads, trunk.decoder_depth)
        self.decoder_norm = nn.LayerNorm(trunk.decoder_width, eps=1e-6)
        self.initialise()

    def encode(self, tokens: Tensor, class_vectors: Tensor, visible: Tensor) -> Tensor:
        """Encode the class and the tokens at positions `visible` (B, k): (B, buffer + k, D)."""
        buffer, positions = self.buffer_size, self.encoder_pos_embed_learned
        class_rows = class_vectors[:, None].expand(-1, buffer, -1) + positions[:, :buffer]
        token_positions = take_rows(positions[:, buffer:].expand(len(tokens), -1, -1), visible)
        token_rows = self.z_proj(take_rows(tokens, visible)) + token_positions
        x = self.z_proj_ln(torch.cat([class_rows, token_rows], 1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, visible: Tensor, targets: Tensor) -> Tensor:
        """Return the condition (B, n, D) of the tokens at positions `targets` (B, n)."""
        buffer, batch = self.buffer_size, len(encoded)
        known = self.decoder_embed(encoded)
        canvas = self.mask_token.expand(batch, self.config.num_tokens, -1)
        x = torch.cat([known[:, :buffer], put_rows(canvas, visible, known[:, buffer:])], 1)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, query_rows=targets + buffer)  # the other rows are not needed any more
        positions = self.diffusion_pos_embed_learned.expand(batch, -1, -1)
        return self.decoder_norm(x) + take_rows(positions, targets)

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the condition (B, L - num_visible, D) of each masked token, by position."""
        return self.conditions(self.begin(class_vectors, order), tokens, num_visible, order.shape[1])

    def begin(self, class_vectors: Tensor, order: Tensor) -> _Generation:
        """Return the state of a generation."""
        return _Generation(class_vectors, order)

    def conditions(self, state: _Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, stop - start, D) of the tokens order[start:stop], by position."""
        visible = state.order[:, :start].sort(1).values
        targets = state.order[:, start:stop].sort(1).values
        return self.decode(self.encode(tokens, state.class_vectors, visible), visible, targets)
