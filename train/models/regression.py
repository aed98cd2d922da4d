"""The squared error: predicts one value for each token (Li et al. 2024, "MAR with L2 loss": a negative control).

A regression has no distribution: it draws the same token again and again, the mean of all that might follow.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.head import HeadLoss, TokenHead
from train.models.heads import HeadSampling, RegressionHead
from train.models.transformer import init_linear_xavier


class Regression(TokenHead):
    """Predicts the token in float32, under autocast too."""

    def __init__(self, config: RegressionHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(condition_width, channels)
        init_linear_xavier(self)

    def mean(self, condition: Tensor) -> Tensor:
        """Return the predicted tokens (..., C) of conditions (..., D)."""
        with torch.autocast(condition.device.type, enabled=False):
            return F.linear(condition.float(), self.linear.weight.float(), self.linear.bias.float())

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:  # noqa: ARG002
        """Return the mean squared error of target (B, n, C) given condition (B, n, D)."""
        return HeadLoss(F.mse_loss(self.mean(condition), target.float()), {})

    def sampling_draws(self, settings: HeadSampling) -> int:  # noqa: ARG002
        """Return 0: nothing is drawn."""
        return 0

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,  # noqa: ARG002
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Return the predicted tokens (N, C) of conditions (N, D); guidance extrapolates from the null ones."""
        self.config.check(settings)
        mean = self.mean(condition)
        if null_condition is None or cfg_scale == 1.0:
            return mean
        null = self.mean(null_condition)
        return null + cfg_scale * (mean - null)
