"""What every per-token head is to the rest: `TokenHead`; and the guidance of those that evaluate a network.

A head models p(token | condition) of one token. It draws nothing itself: random numbers are arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
