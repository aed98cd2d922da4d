"""What every per-token loss head has in common: its size, its loss terms, its sampling settings.

A head models p(token | condition) of one continuous token. Both kinds, `DiffusionLoss` and `FlowLoss`,
have the same two methods, `loss` and `sample`, and draw nothing themselves: the noise is an argument.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadSampling:
    """How one token is drawn from a head."""

    steps: int = 100
    """Network evaluations, before a start clip merges some."""
    solver: Literal["ancestral", "ddim", "dpm-solver++"] = "ancestral"
    """ancestral: DDPM, or Euler-Maruyama for flow; ddim: deterministic, Euler for flow; dpm-solver++: second order."""
    temperature: float = 1.0
    """Scale of the noise added in each ancestral step; the initial noise is not scaled."""
    max_timestep: int | None = None
    """Start at this timestep (0..999) instead of 999; lets 5-20 steps work (diffusion only)."""


@dataclass(frozen=True)
class LossTerms:
    """Means over the predicted tokens; `loss` is what is minimised, the others are for the log."""

    loss: Tensor
    mse: Tensor
    vb: Tensor


class Guidance:
    """Classifier-free guidance: evaluates the network on conditional and null rows together when it must.

    cfg_scale 1 leaves the null branch out, so it equals unguided sampling bit for bit.
    """

    def __init__(self, condition: Tensor, null_condition: Tensor | None, cfg_scale: float) -> None:
        """`condition` and `null_condition` are (N, W), already embedded."""
        self.scale, self.active = cfg_scale, cfg_scale != 1.0
        if self.active and null_condition is None:
            raise ValueError(f"cfg_scale {cfg_scale} needs the null condition")
        self.rows = torch.cat([condition, null_condition]) if self.active else condition  # type: ignore[list-item]

    def repeat(self, x: Tensor) -> Tensor:
        """Return x for every row of `rows`: the null rows see the same tokens."""
        return torch.cat([x, x]) if self.active else x

    def combine(self, output: Tensor, guided_channels: int) -> Tensor:
        """Guide the first channels; the rest (the variances) stay those of the conditional rows."""
        if not self.active:
            return output
        conditional, null = output.chunk(2)
        guided, null = conditional[:, :guided_channels], null[:, :guided_channels]
        return torch.cat([null + self.scale * (guided - null), conditional[:, guided_channels:]], -1)
