"""Mergeable float64 sums of features -> mean and covariance -> Fréchet distance, by torch-fidelity's own formula."""

from dataclasses import dataclass

import numpy as np

NAME = "fd"
_FID_IMAGES = 50_000


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


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017)."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric  # seconds to import: not for those who want the name

    both = [{"mu": of.mean, "sigma": of.covariance} for of in (first, second)]
    return float(fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])


def title(extractor: str, images: int) -> str:
    """Return 'FID' only for Inception features of at least 50,000 images, else 'FD (network, N)'."""
    if extractor == "inception-v3-compat" and images >= _FID_IMAGES:
        return "FID"
    return f"FD ({extractor}, {images})"
