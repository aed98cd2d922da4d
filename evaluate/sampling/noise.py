"""The sampler's random draws: a stream for each image, so that no draw depends on the batch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from infra.seeding import stream


class NoiseSource(Protocol):
    """Where the sampler's random draws come from."""

    def order(self, num_tokens: int) -> Tensor:
        """Return a random order (B, L) of the tokens."""

    def normal(self, draws: int, rows: int, channels: int) -> Tensor:
        """Return standard normal numbers (draws, B, rows, channels): the next autoregressive step's."""


class ImageNoise:
    """One stream for each image, named by the seed and the image's index."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._streams = [stream("image", seed, index) for index in indices]

    def order(self, num_tokens: int) -> Tensor:
        """Return a random order (B, L) of the tokens."""
        return torch.from_numpy(np.stack([random.permutation(num_tokens) for random in self._streams]))

    def normal(self, draws: int, rows: int, channels: int) -> Tensor:
        """Return standard normal numbers (draws, B, rows, channels)."""
        shape = (draws, rows, channels)
        drawn = [random.standard_normal(shape, dtype=np.float32) for random in self._streams]
        return torch.from_numpy(np.stack(drawn, axis=1))
