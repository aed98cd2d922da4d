"""Exponential moving average of the weights, updated after every step."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.sharding import own


class EMA:
    """ema = decay * ema + (1 - decay) * weights; starts as a copy, without warm-up, as published."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._weight = 1 - decay

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor) -> None:
        """Move towards the weights of `model`, which has the same parameters in the same order, unless `skip`."""
        averaged, weight = own(self.model.parameters()), self._weight * ~skip
        torch._foreach_lerp_(averaged, own(model.parameters()), [weight] * len(averaged))

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the averaged weights."""
        return self.model.state_dict()
