"""A probability for each value of each number of a token, given those before it in the token: R, then G, then B.

One hidden layer that all numbers share, to which each value adds a vector for the numbers after it: the neural
autoregressive distribution estimator (Larochelle & Murray 2011), given a condition. The colours of PixelCNN depend on
each other alike (van den Oord et al. 2016, section 2.3), there by masks in every layer.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.categorical import chosen, filtered
from train.models.head import HeadLoss, TokenHead
from train.models.heads import HeadSampling, NadeHead
from train.models.tokens import VALUES
from train.models.transformer import init_linear_xavier


class Nade(TokenHead):
    """Computes in float32, under autocast too; at first all values are equally likely: ln 256 a number."""

    def __init__(self, config: NadeHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.condition = nn.Linear(condition_width, config.width)
        init_linear_xavier(self)
        self.values = nn.Parameter(torch.randn(channels - 1, VALUES, config.width) * 0.02)
        self.weight = nn.Parameter(torch.zeros(channels, config.width, VALUES))
        self.bias = nn.Parameter(torch.zeros(channels, VALUES))

    def walk(
        self,
        condition: Tensor,
        null_condition: Tensor | None,
        cfg_scale: float,
        choose: Callable[[Tensor, int], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, C, 256), guided if there are null conditions, and the values (N, C) of them.

        `choose` takes the logits (N, 256) of each number in turn, and says its values (N,).
        """
        given = [condition] if null_condition is None or cfg_scale == 1.0 else [condition, null_condition]
        found, values = list[Tensor](), list[Tensor]()
        with torch.autocast(condition.device.type, enabled=False):
            hidden = [self.condition(of.float()) for of in given]
            for channel in range(self.channels):
                if channel:
                    added = F.embedding(values[-1], self.values[channel - 1])
                    hidden = [of + added for of in hidden]
                logits = [F.gelu(of) @ self.weight[channel] + self.bias[channel] for of in hidden]
                found.append(logits[-1] + cfg_scale * (logits[0] - logits[-1]) if len(logits) > 1 else logits[0])
                values.append(choose(found[-1], channel))
        return torch.stack(found, 1), torch.stack(values, 1)

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:  # noqa: ARG002
        """Return the cross-entropy, in nats a token, of target (B, n, C) given condition (B, n, D)."""
        loss = -self.log_density(target.flatten(0, 1), condition.flatten(0, 1)).mean()
        return HeadLoss(loss, {"bits_per_dimension": loss.detach() / self.channels / math.log(2)})

    def log_density(
        self, tokens: Tensor, condition: Tensor, null_condition: Tensor | None = None, cfg_scale: float = 1.0
    ) -> Tensor:
        """Return the log probability (N,) of tokens (N, C), without temperature or filters."""
        logits, values = self.walk(condition, null_condition, cfg_scale, lambda _, channel: tokens[:, channel].long())
        lost = F.cross_entropy(logits.flatten(0, 1), values.flatten(), reduction="none")
        return -lost.view(-1, self.channels).sum(1)

    def sampling_draws(self, settings: HeadSampling) -> int:  # noqa: ARG002
        """Return 1: the number that chooses each value."""
        return 1

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw tokens (N, C) as whole numbers in float32 given condition (N, D); noise (1, N, C)."""
        self.config.check(settings)
        uniform = torch.special.ndtr(noise[0].double())

        def drawn(logits: Tensor, channel: int) -> Tensor:
            kept = filtered(logits / settings.temperature, settings.top_k, settings.top_p)
            return chosen(kept, uniform[:, channel])

        return self.walk(condition, null_condition, cfg_scale, drawn)[1].float()
