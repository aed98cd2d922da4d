"""A mixture of diagonal Gaussians, the head of GIVT (Tschannen et al. 2023): one linear layer on the condition.

Its density is known, so the loss is the likelihood itself and a token takes one evaluation to draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from train.models.head import HeadLoss, TokenHead
from train.models.heads import HeadSampling, MixtureHead
from train.models.transformer import init_linear_xavier

_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Mixture:
    """K diagonal Gaussians a token."""

    log_weights: Tensor
    """(..., K), normalised."""
    means: Tensor
    """(..., K, C)."""
    scales: Tensor
    """(..., K, C) standard deviations."""

    @classmethod
    def of(cls, raw: Tensor, components: int) -> "Mixture":
        """Read the layer's output (..., K + 2 K C): logits, then means and raw scales of each component."""
        logits, rest = raw.split((components, raw.shape[-1] - components), -1)
        means, scales = rest.unflatten(-1, (components, 2, -1)).unbind(-2)
        return cls(logits.log_softmax(-1), means, square_plus(scales).clamp(min=_LEAST_SCALE))

    def log_density(self, tokens: Tensor) -> Tensor:
        """Return the log density (...) of tokens (..., C)."""
        each = Normal(self.means, self.scales, validate_args=False).log_prob(tokens.unsqueeze(-2)).sum(-1)
        return (self.log_weights + each).logsumexp(-1)

    def choose(self, uniform: Tensor) -> Tensor:
        """Return the component (...) that each uniform number (...) in [0, 1] falls to."""
        edges = self.log_weights.exp().cumsum(-1)[..., :-1].contiguous()
        return torch.searchsorted(edges, uniform.unsqueeze(-1).contiguous()).squeeze(-1)

    def component(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale (..., C) of the components `index` (...)."""
        rows = index[..., None, None].expand(*index.shape, 1, self.means.shape[-1])
        return self.means.gather(-2, rows).squeeze(-2), self.scales.gather(-2, rows).squeeze(-2)


def square_plus(x: Tensor) -> Tensor:
    """Return (x + sqrt(x^2 + 4)) / 2 > 0, in a form that keeps its digits where x is far below 0."""
    root = (x.square() + 4).sqrt()
    return torch.where(x < 0, 2 / (root - x.clamp(max=0)), (x + root) / 2)


def guided(conditional: tuple[Tensor, Tensor], null: tuple[Tensor, Tensor], cfg_scale: float) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the density p_c^s / p_u^(s - 1), given those of p_c and p_u: a Gaussian as well.

    Where it has none, or one wider than GIVT's proposal (twice the larger scale), p_c is taken, as GIVT does when its
    rejection sampler gives up.
    """
    (mean, scale), (null_mean, null_scale) = conditional, null
    ours, theirs = cfg_scale / scale.square(), (cfg_scale - 1) / null_scale.square()
    precision = ours - theirs
    proper = precision > (2 * torch.maximum(scale, null_scale)) ** -2
    precision = torch.where(proper, precision, 1.0)
    shifted = (ours * mean - theirs * null_mean) / precision
    return torch.where(proper, shifted, mean), torch.where(proper, precision.rsqrt(), scale)


class GaussianMixture(TokenHead):
    """Predicts the mixture in float32, under autocast too."""

    def __init__(self, config: MixtureHead, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(condition_width, config.components * (1 + 2 * channels))
        init_linear_xavier(self)

    def mixture(self, condition: Tensor) -> Mixture:
        """Return the mixture of each condition (..., D)."""
        with torch.autocast(condition.device.type, enabled=False):
            raw = F.linear(condition.float(), self.linear.weight.float(), self.linear.bias.float())
            return Mixture.of(raw, self.config.components)

    def loss(self, target: Tensor, condition: Tensor, draws: Mapping[str, Tensor]) -> HeadLoss:  # noqa: ARG002
        """Return the negative log-likelihood, in nats a token, of target (B, n, C) given condition (B, n, D)."""
        return HeadLoss(-self.mixture(condition).log_density(target.float()).mean(), {})

    def log_density(
        self,
        tokens: Tensor,
        condition: Tensor,
        null_condition: Tensor | None = None,  # noqa: ARG002
        cfg_scale: float = 1.0,  # noqa: ARG002
    ) -> Tensor:
        """Return log p (N,) of tokens (N, C) given condition (N, D), guided or not."""
        return self.mixture(condition).log_density(tokens.float())

    def sampling_draws(self, settings: HeadSampling) -> int:  # noqa: ARG002
        """Return 2: the first chooses the component, the second is its noise."""
        return 2

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw tokens (N, C) float32 given condition (N, D); noise (2, N, C). The temperature multiplies the scales.

        Guidance is that of densities, within the component that the conditional mixture chose.
        """
        self.config.check(settings)
        mixture = self.mixture(condition)
        index = mixture.choose(torch.special.ndtr(noise[0, :, 0].float()))
        mean, scale = mixture.component(index)
        if null_condition is not None and cfg_scale != 1.0:
            null = self.mixture(null_condition).component(index)
            mean, scale = guided((mean, scale), null, cfg_scale)
        return mean + settings.temperature * scale * noise[1].float()
