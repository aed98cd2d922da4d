"""The small residual MLP that denoises one token given its condition (Li et al. 2024, section 4.1, "Denoising MLP")."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.transformer import init_linear_xavier

_TIME_FEATURES = 256
_FEW_ROWS = 256

Modulations = list[tuple[Tensor, Tensor]]
"""Weight and bias of all AdaLN modulations, in one layer or one for each block."""


class TimeEmbedding(nn.Module):
    """Timesteps (N,) -> (N, W): cosines and sines of 128 frequencies, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps, on the scale 0..1000."""
        half = _TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device).float() / half)
        angles = timesteps.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class ResidualBlock(nn.Module):
    """h + gate * MLP(modulated LayerNorm(h))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """Map h (N, W) to (N, W), given its modulation (N, 3 W)."""
        shift, scale, gate = modulation.chunk(3, -1)
        return h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)


class HeadMLP(nn.Module):
    """Noisy token (N, C), time and condition -> output (N, out_channels).

    All AdaLN modulations, (3 depth + 2) W numbers a row, are one layer: they depend on the same input. The
    last layer and what follows it run in float32 under autocast: at t = 999 an error of the output is
    amplified 20,000 times.
    """

    def __init__(self, channels: int, condition_width: int, out_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.modulation = nn.Linear(width, (3 * depth + 2) * width)
        self.final_linear = nn.Linear(width, out_channels)
        self._initialise()

    def _initialise(self) -> None:
        init_linear_xavier(self)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.modulation, self.final_linear):  # the identity at first: the output is exactly 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulation_layers(self, rows: int) -> Modulations:
        """Return weight and bias of the modulations of so many rows, as one layer or as one of each block.

        Autocast keeps what it casts of a parameter, not of its slices: those are cast here, once.
        """
        weight, bias, device = self.modulation.weight, self.modulation.bias, self.modulation.weight.device.type
        if not torch.is_grad_enabled():  # hooks on a module's inputs expect no parameters among them
            weight, bias = weight.detach(), bias.detach()
        if torch.is_autocast_enabled(device):
            weight, bias = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (weight, bias))
        if rows <= _FEW_ROWS:  # one product: each costs a launch
            return [(weight, bias)]
        return list(zip(weight.split(3 * self.width), bias.split(3 * self.width), strict=True))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, layers: Modulations | None = None) -> Tensor:
        """Map x (N, C), embedded time (N or 1, W) and embedded condition (N, W) to float32 (N, out_channels).

        `layers` are the `modulation_layers` of N rows, from who calls again and again.
        """
        vectors = F.silu(time + condition)
        products = (F.linear(vectors, *layer) for layer in layers or self.modulation_layers(len(vectors)))
        # of many rows one product at a time, when it is needed: the cache holds it
        modulations = (part for product in products for part in product.split(3 * self.width, -1))
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, next(modulations))
        shift, scale = next(modulations).chunk(2, -1)
        with torch.autocast(x.device.type, enabled=False):
            h = F.layer_norm(h.float(), (self.width,), eps=1e-6)
            h = h * (1 + scale.float()) + shift.float()
            return F.linear(h, self.final_linear.weight.float(), self.final_linear.bias.float())
