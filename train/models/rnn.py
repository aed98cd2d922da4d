"""A recurrent network over the tokens in raster order: it reads token i-1 and tells of token i (pixel RNN).

The plain form of van den Oord et al. 2016 (arXiv 1601.06759): one LSTM whose state is all that it keeps of the past. A
token costs the same wherever it is, O(depth); in training each waits for the one before it, O(depth + L) in a chain.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from train.models.autoregressor import GridAutoregressor
from train.models.config import Model
from train.models.trunks import RecurrentTrunk

_Memory = list[tuple[Tensor, Tensor]]
"""Hidden state and cells (1, B, D) of each layer."""


@dataclass
class _Generation:
    class_vectors: Tensor
    memory: _Memory | None = None
    """After the rows read; None before the first."""
    rows_read: int = 0


class RecurrentLayer(nn.Module):
    """One LSTM, whose input is biased by the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_bias = nn.Linear(width, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(
        self, rows: Tensor, class_vectors: Tensor, memory: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read rows (B, N, D) of classes (B, D) after `memory`; returns what they became, and the memory after them."""
        return self.lstm(rows + self.class_bias(class_vectors)[:, None], memory)


class PixelRNN(GridAutoregressor):
    """Raster order, one token a step; each row is told the class and the position that it predicts."""

    compiles: ClassVar[bool] = False

    def __init__(self, config: Model, trunk: RecurrentTrunk) -> None:
        super().__init__(config, trunk.width, condition_width=trunk.width)
        self.target_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, trunk.width))
        self.first = nn.Parameter(torch.empty(1, 1, trunk.width))
        self.layers = nn.ModuleList(RecurrentLayer(trunk.width) for _ in range(trunk.depth))
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.initialise()

    def rows(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        """Return the input rows (B, stop - first, D): row i holds token i - 1, and is told of position i."""
        read = self.z_proj(tokens[:, max(first - 1, 0) : stop - 1])
        begin = self.first.expand(len(tokens), -1, -1)[:, first:1]
        return self.z_proj_ln(torch.cat([begin, read], 1) + self.target_pos_embed_learned[:, first:stop])

    def read(self, rows: Tensor, class_vectors: Tensor, memory: _Memory | None) -> tuple[Tensor, _Memory]:
        """Run the layers over rows (B, N, D), in float32 under autocast too: errors add up in their cells."""
        after: _Memory = []
        with torch.autocast(rows.device.type, enabled=False):
            rows, class_vectors = rows.to(self.first.dtype), class_vectors.to(self.first.dtype)
            for place, layer in enumerate(self.layers):
                rows, kept = layer(rows, class_vectors, memory[place] if memory else None)
                after.append(kept)
        return rows, after

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:  # noqa: ARG002
        """Return the condition (B, L - num_visible, D) of each token after the visible ones, in raster order."""
        read, _ = self.read(self.rows(tokens, 0, tokens.shape[1]), class_vectors, None)
        return self._told(read)[:, num_visible:]

    def begin(self, class_vectors: Tensor, order: Tensor) -> _Generation:  # noqa: ARG002  always the same
        """Return the state of a generation, which has read nothing."""
        return _Generation(class_vectors)

    def conditions(self, state: _Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, 1, D) of token `start`, reading only rows not read before."""
        if stop != start + 1:
            raise ValueError(f"a recurrent model predicts one token a step, not {stop - start}")
        rows = self.rows(tokens, state.rows_read, stop)
        read, state.memory = self.read(rows, state.class_vectors, state.memory)
        state.rows_read = stop
        return self._told(read[:, -1:], start)

    def _told(self, read: Tensor, first: int = 0) -> Tensor:
        return self.norm(read) + self.diffusion_pos_embed_learned[:, first : first + read.shape[1]]
