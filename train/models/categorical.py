"""One probability for each code: a linear layer on the condition, and the cross-entropy (Li et al. 2024, Table 1).

Temperature, top-k and top-p act on the logits in this order, after guidance, as in VAR (Tian et al. 2024).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.head import HeadLoss, TokenHead
from train.models.heads import CategoricalHead, HeadSampling


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits (..., K) with -inf where a code is neither among the `top_k` likeliest nor among those that hold
    `top_p` of the probability; 0 and 1 leave all. Ties at the k-th are kept, and so is the likeliest code.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[..., -1:], -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort(-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def chosen(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the code (...) that each uniform number (...) in [0, 1] falls to, of logits (..., K)."""
    edges = logits.double().softmax(-1).cumsum(-1)
    last = logits.shape[-1] - 1 - logits.isfinite().flip(-1).float().argmax(-1)  # rounding must not go beyond
    found = torch.searchsorted(edges, uniform.double().unsqueeze(-1).contiguous(), right=True).squeeze(-1)
    return torch.minimum(found, last)


class Categorical(TokenHead):
    """Predicts the logits in float32, under autocast too; at first all are equal, and the loss is ln K."""

    def __init__(self, config: CategoricalHead, codes: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(condition_width, codes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def logits(self, condition: Tensor, null_condition: Tensor | None = None, cfg_scale: float = 1.0) -> Tensor:
        """Return logits (..., K) of conditions (..., D), guided if there are null ones."""
        with torch.autocast(condition.device.type, enabled=False):
            found = F.linear(condition.float(), self.linear.weight.float(), self.linear.bias.float())
            if null_condition is None or cfg_scale == 1.0:
                return found
            null = self.logits(null_condition)
            return null + cfg_scale * (found - null)

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:  # noqa: ARG002
        """Return the cross-entropy, in nats a token, of target (B, n, 1) given condition (B, n, D)."""
        logits = self.logits(condition).flatten(0, 1)
        return HeadLoss(F.cross_entropy(logits, target.flatten().long()), {})

    def log_density(
        self, tokens: Tensor, condition: Tensor, null_condition: Tensor | None = None, cfg_scale: float = 1.0
    ) -> Tensor:
        """Return the log probability (N,) of tokens (N, 1), without temperature or filters."""
        return -F.cross_entropy(
            self.logits(condition, null_condition, cfg_scale), tokens[:, 0].long(), reduction="none"
        )

    def sampling_draws(self, settings: HeadSampling) -> int:  # noqa: ARG002
        """Return 1: the number that chooses the code."""
        return 1

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw codes (N, 1) as whole numbers in float32 given condition (N, D); noise (1, N, 1)."""
        self.config.check(settings)
        logits = self.logits(condition, null_condition, cfg_scale) / settings.temperature
        uniform = torch.special.ndtr(noise[0, :, 0].double())
        return chosen(filtered(logits, settings.top_k, settings.top_p), uniform)[:, None].float()
