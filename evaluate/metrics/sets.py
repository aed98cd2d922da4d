"""What metrics are computed from: the features of a set of images, and statistics of all of it."""

from dataclasses import dataclass, field

import numpy as np

from infra.seeding import stream


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features: what a Fréchet distance knows of a set of images."""

    mean: np.ndarray
    """(D,) float32, as torch-fidelity rounds it."""
    covariance: np.ndarray
    """(D, D) float64, unbiased."""


@dataclass(frozen=True)
class FeatureSums:
    """Count, sum and outer-product sum of feature rows: adding two is the same as seeing both sets of rows."""

    count: int
    total: np.ndarray
    """(D,) float64."""
    outer: np.ndarray
    """(D, D) float64."""

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureSums":
        """Return the sums of features (N, D)."""
        rows = features.astype(np.float64)
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        """Return the sums of both sets."""
        return FeatureSums(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def statistics(self) -> Statistics:
        """Return mean and covariance; of fewer than two rows there is none."""
        mean = self.total / self.count
        covariance = (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Statistics(mean.astype(np.float32), covariance)


def _no_rows() -> np.ndarray:
    return np.empty((0, 0), np.float32)


def _no_classes() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as metrics see it; what is not known of it has no rows."""

    statistics: Statistics
    """Of all images."""
    features: np.ndarray = field(default_factory=_no_rows)
    """(n, D) float32: of all images in order, or of a random subset."""
    logits: np.ndarray = field(default_factory=_no_rows)
    """(n, classes) float32, of the extractor."""
    labels: np.ndarray = field(default_factory=_no_classes)
    """(n,) class that each image was drawn as."""
    judged: np.ndarray = field(default_factory=_no_classes)
    """(n,) class that a classifier takes each image for."""


def in_turns(of: FeatureSet) -> np.ndarray:
    """Return an order of the images in which classes take turns, as those that are drawn come: for error bars.

    Their groups are runs of the order. Of a folder sorted by class a run would be a class, and the bar that between
    classes. Within a class, and where none is known, the order is a random one, always the same.
    """
    images = len(of.features)
    order = stream("error-groups").permutation(images)
    if len(of.labels) != images:
        return order
    by_class = order[np.argsort(of.labels[order], kind="stable")]
    _, first, counts = np.unique(of.labels[by_class], return_index=True, return_counts=True)
    return by_class[np.argsort(np.arange(images) - np.repeat(first, counts), kind="stable")]
