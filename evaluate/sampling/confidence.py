"""The order that a model finds on the way: the tokens it is surest of come first (MaskGIT, Chang et al. 2022; MAGE)."""

import torch
from torch import Tensor


def most_confident(log_density: Tensor, gumbel: Tensor, scale: float) -> Tensor:
    """Return the indices (B, n) of drawn tokens, the surest first: by log density (B, n) + scale * gumbel (B, n)."""
    return (log_density + scale * gumbel).argsort(1, descending=True)


def to_gumbel(normal: Tensor) -> Tensor:
    """Return Gumbel numbers of standard normal ones."""
    return -torch.log(-torch.special.log_ndtr(normal.double()))
