"""What every kind of token is to the store and its readers: `TokenKind`. Imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np


class TokenKind(ABC):
    """What a tokenizer makes of one image: the values that a store keeps, and what a training step sees of them.

    A kind owns its column, its draw when read, its statistics, and what it tells a model of itself.
    """

    column: ClassVar[str]
    """Name of its column in the store; the mirror image's is COLUMN_flip."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Type of the stored numbers."""

    @property
    def choices(self) -> int | None:
        """How many whole numbers, from 0 on, a stored number is one of; None where it is real."""
        return None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of what is stored of one image."""

    @property
    def bytes(self) -> int:
        """Return the bytes of what is stored of one image."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    @abstractmethod
    def meaning(self) -> str:
        """Say what the numbers are, for the metadata of the column."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return what the manifest calls the layout: `tokens.read_kind` reads it back."""

    @abstractmethod
    def told(self) -> str:
        """Say what an image becomes, for a person."""

    @abstractmethod
    def draw(self, stored: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:
        """Return what a training step sees of stored values (B, ...): float32 (B, C, h, w). An image has a stream."""

    @abstractmethod
    def likeliest(self, stored: Any) -> Any:  # noqa: ANN401  an array or a tensor
        """Return the likeliest of what `draw` could return, of stored values (B, ...) as the tokenizer encodes them."""

    @abstractmethod
    def sums(self, stored: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return what one shard adds to the statistics; both flips are given."""

    @abstractmethod
    def statistics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the manifest's entries that follow from the sums of all shards."""

    def measured(self, manifest: Mapping[str, Any]) -> dict[str, float]:
        """Return those of the statistics that are single numbers, by name."""
        return {name: manifest[name] for name in self.numbers}

    numbers: ClassVar[tuple[str, ...]]
    """Names of the statistics that are single numbers."""

    def scale(self, manifest: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Return the factor on what `draw` returns that a model is trained with."""
        return 1.0

    def warning(self, statistics: Mapping[str, Any], images: int) -> str:  # noqa: ARG002
        """Say what is wrong with a store of these statistics and so many images, or nothing."""
        return ""

    def table(self, manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:  # noqa: ARG002
        """Return header and rows of the statistics that a person wants to see beyond `measured`."""
        return (), []

    @abstractmethod
    def for_model(self) -> dict[str, Any]:
        """Return the fields of a model (`train.models.config.Model`) that follow from these tokens, as plain values."""
