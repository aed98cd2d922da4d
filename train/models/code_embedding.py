"""Reads codes: a learned vector for each, as language models read words."""

import torch
from torch import Tensor, nn


class CodeEmbedding(nn.Embedding):
    """Tokens of C codes as whole numbers (..., C), float32 -> (..., width): the sum over C tables."""

    def __init__(self, codes: int, width: int, tables: int = 1) -> None:
        super().__init__(tables * codes, width)
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("first_rows", torch.arange(tables) * codes, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the sum of the vectors of each token's codes."""
        return super().forward(tokens.long() + self.first_rows).sum(-2)
