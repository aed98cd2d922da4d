"""Exponential moving average of the weights, updated after every step, as one fused operation."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """ema = decay * ema + (1 - decay) * weights; starts as a copy, without warm-up, as published."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of `model`, which has the same parameters in the same order."""
        self._average(list(self.model.parameters()), list(model.parameters()), None)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the averaged weights."""
        return self.model.state_dict()
