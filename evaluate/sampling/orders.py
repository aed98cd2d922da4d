"""Generation orders of the L tokens of an image, and how many tokens each autoregressive step reveals."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from evaluate.config import Order

_GTR_SHARES = (0.75, 0.1875, 0.0625)  # of the steps, for the first, second and last stage


def generation_order(kind: Order, random_order: Tensor) -> Tensor:
    """Return the order (B, L) of this kind; `random_order` (B, L) breaks its ties, image by image.

    random: the paper's. raster: row by row. halton: a low-discrepancy sequence over the grid, the same for
    all images (Besnier et al. 2025). gtr: the even squares of a checkerboard in two spatially uniform
    stages, then the odd ones, random within a stage (generation then reconstruction, arXiv 2510.17171).
    """
    rank = RANKS[kind](random_order.shape[1])
    return random_order.gather(1, rank[random_order].argsort(dim=1, stable=True))


def reveal_counts(kind: Order, num_tokens: int, ar_steps: int) -> list[int]:
    """Return how many tokens each step reveals: the cosine schedule, or the stages of gtr.

    Raises ValueError unless 1 <= ar_steps <= num_tokens.
    """
    if kind != "gtr" or num_tokens < 4 or ar_steps < 3:
        return cosine_reveal(num_tokens, ar_steps)
    check_ar_steps(num_tokens, ar_steps)
    second, last = (max(1, round(share * ar_steps)) for share in _GTR_SHARES[1:])
    first_tokens = num_tokens // 4
    first = min(ar_steps - second - last, first_tokens)
    if first < ar_steps - second - last:  # more steps than the stage has tokens: the next stages take them
        second = min(ar_steps - first - last, first_tokens)
        last = ar_steps - first - second
    stages = [(first_tokens, first), (first_tokens, second), (num_tokens - 2 * first_tokens, last)]
    return [count for tokens, steps in stages for count in _evenly(tokens, steps)]


def cosine_reveal(num_tokens: int, ar_steps: int) -> list[int]:
    """Return how many tokens each autoregressive step reveals (Li et al. 2024, section 4.3; MaskGIT's schedule).

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


def _evenly(tokens: int, steps: int) -> list[int]:
    edges = [tokens * step // steps for step in range(steps + 1)]
    return [stop - start for start, stop in pairwise(edges)]


def _halton_ranks(side: int) -> Tensor:
    """Return the rank (L,) of each position in the order in which the Halton (2, 3) points first visit it."""
    ranks = torch.full((side * side,), -1)
    index = found = 0
    while found < side * side:
        position = int(_radical_inverse(index, 2) * side) * side + int(_radical_inverse(index, 3) * side)
        if ranks[position] < 0:
            ranks[position] = found
            found += 1
        index += 1
    return ranks


def _radical_inverse(index: int, base: int) -> float:
    """Return the digits of `index` in `base` mirrored at the radix point."""
    value, weight = 0.0, 1 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * weight
        weight /= base
    return value


def _gtr_stages(side: int) -> Tensor:
    """Return the stage (L,): 0 where (row + column) % 4 == 0, 1 where it is 2, 2 where it is odd."""
    diagonal = torch.arange(side)[:, None] + torch.arange(side)[None]
    return torch.where(diagonal % 2 == 1, 2, (diagonal % 4) // 2).flatten()


RANKS: dict[Order, Callable[[int], Tensor]] = {
    "confidence": lambda length: torch.zeros(length, dtype=torch.long),  # to begin with; found on the way
    "random": lambda length: torch.zeros(length, dtype=torch.long),
    "raster": torch.arange,
    "halton": lambda length: _halton_ranks(math.isqrt(length)),
    "gtr": lambda length: _gtr_stages(math.isqrt(length)),
}
"""The rank (L,) of each position of a square grid, by the number of positions; equal ranks are ordered at random."""
