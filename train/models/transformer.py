"""Pre-norm transformer blocks, as in ViT: bidirectional or causal, with a key/value cache for sampling."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values of the rows a causal block has seen, in buffers of fixed size."""

    def __init__(self) -> None:
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Append (B, heads, rows, head_dim) and return everything held so far."""
        batch, heads, rows, dim = key.shape
        if self._buffers is None:
            self._buffers = key.new_empty(batch, heads, capacity, dim), value.new_empty(batch, heads, capacity, dim)
        stop = self.length + rows
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:, :, self.length : stop] = new
        self.length = stop
        return self._buffers[0][:, :, :stop], self._buffers[1][:, :, :stop]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *,
    dropout: float = 0.0, causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Return torch's attention from queries (B, heads, n, head_dim) to (B, heads, N, head_dim): on a processor at least
    in float32, since its bf16 kernel takes five times as long there, and ten times in the backward pass."""
    on_processor = query.device.type == "cpu" and query.dtype != torch.float64
    if on_processor:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False) if on_processor else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scale)


class Attention(nn.Module):
    """Multi-head self-attention; the fused projection is laid out (q, k, v) x heads x head_dim."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, query_rows: Tensor | None, *, causal: bool, cache: KeyValueCache | None, capacity: int
    ) -> Tensor:
        """Attend from the rows `query_rows` (B, n) of x (B, N, D), or from all rows, to all rows."""
        batch, _, width = x.shape
        split = (3, self.heads, width // self.heads)
        if query_rows is None:
            query, key, value = self.qkv(x).unflatten(-1, split).permute(2, 0, 3, 1, 4)
        else:
            query_weight, other_weight = self.qkv.weight.split((width, 2 * width))
            query_bias, other_bias = self.qkv.bias.split((width, 2 * width))
            query = F.linear(take_rows(x, query_rows), query_weight, query_bias)
            query = query.unflatten(-1, split[1:]).transpose(1, 2)
            key, value = F.linear(x, other_weight, other_bias).unflatten(-1, (2, *split[1:])).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.extend(key, value, capacity)
        dropout, causal = self.dropout if self.training else 0.0, causal and query.shape[2] > 1
        attended = attend(query, key, value, dropout=dropout, causal=causal)
        return self.proj(attended.transpose(1, 2).reshape(batch, -1, width))


class MLP(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, int(width * mlp_ratio), dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_rows: Tensor | None = None,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        capacity: int = 0,
    ) -> Tensor:
        """Map x (B, N, D) to (B, N, D), or to (B, n, D) when only `query_rows` (B, n) are needed after it."""
        residual = x if query_rows is None else take_rows(x, query_rows)
        attended = self.attn(self.norm1(x), query_rows, causal=causal, cache=cache, capacity=capacity)
        x = residual + self.dropout(attended)
        return x + self.mlp(self.norm2(x))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return x (B, N, D) at the row numbers `rows` (B, n): (B, n, D). A gather, so no host sync."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def put_rows(x: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Return x (B, N, D) with `new` (B, n, D) at the row numbers `rows` (B, n)."""
    return x.scatter(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]), new.to(x.dtype))


def init_linear_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer of `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
