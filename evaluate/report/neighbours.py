"""Nearest real images of generated ones in feature space: is a model's sample a picture that it has seen?"""

from dataclasses import dataclass

import numpy as np
import torch

_BLOCK = 1000
MOST = 2000  # of generated images, so that the search takes seconds


@dataclass(frozen=True)
class Neighbours:
    """The nearest of some candidates to each query."""

    distances: np.ndarray
    """(n, k) Euclidean distances, nearest first."""
    places: np.ndarray
    """(n, k) which candidates they are."""


def nearest(queries: np.ndarray, candidates: np.ndarray, count: int) -> Neighbours:
    """Return the `count` nearest rows of `candidates` (m, D), or all there are, to each row of `queries` (n, D)."""
    found = [
        torch.cdist(rows, torch.from_numpy(candidates)).topk(min(count, len(candidates)), largest=False)
        for rows in torch.from_numpy(queries).split(_BLOCK)
    ]
    return Neighbours(*(torch.cat(of).numpy() for of in zip(*found, strict=True)))
