"""Reads codes: a learned vector for each, as language models read words."""

from torch import Tensor, nn


class CodeEmbedding(nn.Embedding):
    """Codes as whole numbers (..., 1), float32 -> (..., width)."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__(codes, width)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vector of each code."""
        return super().forward(tokens[..., 0].long())
