"""How much is masked in training, and how much is revealed in each autoregressive step.

Li et al. 2024, section 4.2 (masking ratio) and 4.3 (cosine schedule); MaskGIT's schedule.
"""

import math
from statistics import NormalDist

_MEAN, _STD = 1.0, 0.25  # of the truncated normal, published recipe


def num_masked(uniform: float, num_tokens: int, mask_ratio_min: float) -> int:
    """Return how many tokens of an image are masked in a training step.

    The ratio is a normal (1.0, 0.25) truncated to [mask_ratio_min, 1], by its inverse distribution
    function at `uniform` in [0, 1): one number per step, shared by the batch, keeps shapes equal.
    """
    normal = NormalDist()
    low = normal.cdf((mask_ratio_min - _MEAN) / _STD)
    ratio = _MEAN + _STD * normal.inv_cdf(min(max(low + uniform * (0.5 - low), 1e-12), 0.5))
    return min(max(math.ceil(num_tokens * ratio), 1), num_tokens)


def cosine_reveal(num_tokens: int, ar_steps: int) -> list[int]:
    """Return how many tokens each autoregressive step reveals; they sum to `num_tokens`.

    After step k of K, floor(L cos(pi/2 (k+1)/K)) tokens stay masked, but at least one is revealed in
    each step. Raises ValueError unless 1 <= ar_steps <= num_tokens.
    """
    check_ar_steps(num_tokens, ar_steps)
    counts, masked = [], num_tokens
    for step in range(1, ar_steps + 1):
        remain = math.floor(num_tokens * math.cos(math.pi / 2 * step / ar_steps))
        remain = 0 if step == ar_steps else max(1, min(masked - 1, remain))
        counts.append(masked - remain)
        masked = remain
    return counts


def check_ar_steps(num_tokens: int, ar_steps: int) -> None:
    """Raise ValueError unless each step can reveal at least one token."""
    if not 1 <= ar_steps <= num_tokens:
        raise ValueError(f"ar_steps is {ar_steps}, but must be from 1 to the {num_tokens} tokens to generate")
