"""What every per-token head is to the rest: `TokenHead`; and the guidance of those that evaluate a network.

A head models p(token | condition) of one token. It draws nothing itself: random numbers are arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.models.heads import HeadSampling


@dataclass(frozen=True)
class HeadLoss:
    """What is minimised, a mean over the predicted tokens, and what of it is logged, detached."""

    loss: Tensor
    terms: Mapping[str, Tensor]


class TokenHead(nn.Module):
    """Interface of the heads; N tokens of C channels, conditions of D."""

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:
        """Return the loss of tokens target (B, n, C) given condition (B, n, D).

        `draws` hold what the config's `training_draws` names: (M, B, n, ...) where one image's are (M, n, ...).
        """
        raise NotImplementedError

    def log_density(
        self, tokens: Tensor, condition: Tensor, null_condition: Tensor | None = None, cfg_scale: float = 1.0
    ) -> Tensor:
        """Return log p (N,) of tokens (N, C) given condition (N, D), in nats; only of heads that have a density."""
        raise NotImplementedError

    def sampling_draws(self, settings: HeadSampling) -> int:
        """Return how many standard normal numbers `sample` needs for each channel of a token."""
        raise NotImplementedError

    def compile_sampling(self) -> None:
        """Compile what `sample` repeats, if anything: a GPU spends its time on launches of small kernels."""

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw tokens (N, C) float32 given condition (N, D); noise (sampling_draws, N, C) in order of use.

        With `null_condition`, guided by cfg_scale. Raises ValueError for settings that the config's `check` refuses.
        """
        raise NotImplementedError


class Guidance(NamedTuple):
    """Classifier-free guidance: evaluates the network on conditional and null rows together when it must.

    cfg_scale 1 leaves the null branch out, so it equals unguided sampling bit for bit.
    """

    rows: Tensor
    """(N, W) embedded conditions; under guidance (2 N, W), the null ones last."""
    scale: Tensor | None
    """0-d, on the device, since it may change at every step; None without guidance."""

    @classmethod
    def of(cls, condition: Tensor, null_condition: Tensor | None, cfg_scale: float) -> "Guidance":
        """`condition` and `null_condition` are (N, W), already embedded."""
        if cfg_scale == 1.0:
            return cls(condition, None)
        if null_condition is None:
            raise ValueError(f"cfg_scale {cfg_scale} needs the null condition")
        scale = torch.full((), cfg_scale, device=condition.device)
        return cls(torch.cat([condition, null_condition]), scale)

    def repeat(self, x: Tensor) -> Tensor:
        """Return x for every row of `rows`: the null rows see the same tokens."""
        return x if self.scale is None else torch.cat([x, x])

    def combine(self, output: Tensor, guided_channels: int) -> Tensor:
        """Guide the first channels; the rest (the variances) stay those of the conditional rows."""
        if self.scale is None:
            return output
        conditional, null = output.chunk(2)
        guided, null = conditional[:, :guided_channels], null[:, :guided_channels]
        return torch.cat([null + self.scale * (guided - null), conditional[:, guided_channels:]], -1)
