"""Next-scale prediction, VAR (Tian et al. 2024): all codes of a scale at once, given those of the coarser scales.

Names of parameters are those of the published checkpoints (`published_var.py`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.transformer import KeyValueCache, attend
from train.models.trunks import NextScaleTrunk

_LARGEST_SCALE = math.log(100)
_PLAIN_SCALE = 0.25  # over sqrt(head_dim), where queries are not normalised: as published
_EPS = 1e-6


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the layer norm of x (B, N, D), which has no weights, times 1 + scale, plus shift."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


class ScaleAttention(nn.Module):
    """Queries and keys of unit length, with a learned temperature for each head; keys have no bias."""

    def __init__(self, width: int, heads: int, *, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KeyValueCache | None, capacity: int) -> Tensor:
        """Attend from x (B, N, D) to where mask (N, N) is true, or to all; with a cache, to what came before too."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scale = _PLAIN_SCALE / math.sqrt(query.shape[-1])
        if self.l2_norm:
            query = F.normalize(query, dim=-1) * self.scale_mul_1H11.clamp(max=_LARGEST_SCALE).exp()
            key, scale = F.normalize(key, dim=-1), 1.0
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast normalises in float32
        if cache is not None:
            key, value = cache.extend(key, value, capacity)
        found = attend(query, key, value, mask, scale=scale)
        return self.proj(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU (approximate), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AdaLNBlock(nn.Module):
    """Attention and MLP whose norms and gates the class sets; `shared`: by one projection for all blocks."""

    def __init__(self, trunk: NextScaleTrunk, drop_path: float) -> None:
        super().__init__()
        width, self.drop_path = trunk.width, drop_path
        self.attn = ScaleAttention(width, trunk.heads, l2_norm=trunk.l2_norm)
        self.ffn = FeedForward(width, round(width * trunk.mlp_ratio))
        if trunk.adaln == "shared":
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self,
        x: Tensor,
        class_vectors: Tensor,
        shared: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        capacity: int = 0,
    ) -> Tensor:
        """Map x (B, N, D) to (B, N, D), given class vectors (B, D), or what all blocks share of them (B, 1, 6, D)."""
        six = self.ada_lin(class_vectors).unflatten(-1, (1, 6, -1)) if shared is None else self.ada_gss + shared
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
        x = x + self._dropped(self.attn(modulated(x, scale1, shift1), mask, cache, capacity) * gate1)
        return x + self._dropped(self.ffn(modulated(x, scale2, shift2)) * gate2)

    def _dropped(self, update: Tensor) -> Tensor:
        """Drop the update of some images while training: stochastic depth."""
        if not self.training or self.drop_path == 0:
            return update
        kept = torch.rand(len(update), 1, 1, device=update.device) >= self.drop_path
        return update * kept / (1 - self.drop_path)


class HeadNorm(nn.Module):
    """The last norm, which the class sets too: scale before shift, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, class_vectors: Tensor) -> Tensor:
        """Map x (B, N, D) to (B, N, D)."""
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.ada_lin(class_vectors.float()).unflatten(-1, (1, 2, -1)).unbind(2)
            return modulated(x.float(), scale, shift)


@dataclass
class Generation:
    """What a generation keeps from one scale to the next."""

    class_vectors: Tensor
    shared: Tensor | None
    """What all blocks share of the class vectors (B, 1, 6, D), where they share it."""
    caches: list[KeyValueCache]
    scale: int = 0
    features: Tensor | float = 0.0
    """The sum of the scales drawn."""


class VAR(Autoregressor):
    """Coarse to fine, one scale a step; within a scale every code sees every other."""

    not_decayed = ("pos_start", "pos_1LC", "lvl_embed.weight", "scale_mul_1H11", "ada_gss")

    def __init__(self, config: Model, trunk: NextScaleTrunk) -> None:
        super().__init__(config, trunk.width, condition_width=trunk.width)
        width, depth, length = trunk.width, trunk.depth, config.num_tokens
        self.counts, self.capacity = config.tokens.together, length
        level = torch.tensor([scale for scale, count in enumerate(self.counts) for _ in range(count)])
        self.register_buffer("lvl_1L", level, persistent=False)
        self.register_buffer("mask", level[:, None] >= level, persistent=False)
        self.pos_start = nn.Parameter(torch.empty(1, self.counts[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, length, width))
        self.lvl_embed = nn.Embedding(len(self.counts), width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) if trunk.adaln == "shared" else None
        drops = [trunk.drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(AdaLNBlock(trunk, drop) for drop in drops)
        self.head_nm = HeadNorm(width)
        self._initialise(trunk)

    @property
    def of_tokenizer(self) -> dict[str, nn.Module]:
        """The codebook and the phis."""
        return {"scales": self.z_proj.scales}

    @torch.no_grad()
    def _initialise(self, trunk: NextScaleTrunk) -> None:
        """Initialise all but the head as the published implementation does (the head did it itself)."""
        std = math.sqrt(1 / (3 * trunk.width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module not in self.head.modules():
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.pos_start, self.pos_1LC, self.fake_latent):
            nn.init.trunc_normal_(parameter, std=std)
        self.head_nm.ada_lin[-1].weight.mul_(0.5)
        for block in self.blocks:
            for last in (block.attn.proj, block.ffn.fc2):
                last.weight.div_(math.sqrt(2 * trunk.depth))
            if trunk.adaln == "shared":
                nn.init.normal_(block.ada_gss, std=1 / math.sqrt(trunk.width))
                six = block.ada_gss[0, 0]
            else:
                six = block.ada_lin[-1].weight.unflatten(0, (6, -1))
            six[:2].mul_(trunk.gate_init)
            six[2:].mul_(0.5)

    def _shared(self, class_vectors: Tensor) -> Tensor | None:
        return None if self.shared_ada_lin is None else self.shared_ada_lin(class_vectors).unflatten(-1, (1, 6, -1))

    def _rows(self, read: Tensor, first: int) -> Tensor:
        """Add scale and position to what rows `first`... of the sequence read."""
        rows = slice(first, first + read.shape[1])
        return read.float() + self.lvl_embed(self.lvl_1L[rows]) + self.pos_1LC[:, rows]

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:  # noqa: ARG002
        """Return the condition (B, L - num_visible, D) of each code after the visible ones, from coarser scales."""
        start = class_vectors[:, None] + self.pos_start
        x = self._rows(torch.cat([start, self.z_proj(tokens[..., 0].long())], 1), 0)
        shared = self._shared(class_vectors)
        for block in self.blocks:
            x = block(x, class_vectors, shared, self.mask)
        return self.head_nm(x, class_vectors)[:, num_visible:]

    def begin(self, class_vectors: Tensor, order: Tensor) -> Generation:  # noqa: ARG002  there is one order
        """Return the state of a generation, with empty caches."""
        caches = [KeyValueCache() for _ in self.blocks]
        return Generation(class_vectors, self._shared(class_vectors), caches)

    def conditions(self, state: Generation, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Return the condition (B, p^2, D) of the codes of the next scale, which reads the scale before."""
        scale = state.scale
        if (start, stop) != (first := sum(self.counts[:scale]), first + self.counts[scale]):
            raise ValueError(f"a next-scale model predicts a scale a step, not codes {start} to {stop}")
        if scale:
            before = tokens[:, start - self.counts[scale - 1] : start, 0].long()
            state.features = self.z_proj.summed(state.features, self.z_proj.vectors(before), scale - 1)
        return self.next_scale(state)

    def next_scale(self, state: Generation) -> Tensor:
        """Return the condition (B, p^2, D) of the codes of the next scale, which reads the sum in `state`."""
        scale = state.scale
        start = state.class_vectors[:, None] + self.pos_start
        read = self.z_proj.read(state.features, scale) if scale else start
        x = self._rows(read, sum(self.counts[:scale]))
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x = block(x, state.class_vectors, state.shared, cache=cache, capacity=self.capacity)
        state.scale += 1
        return self.head_nm(x, state.class_vectors)
