"""Mergeable float64 sums of features -> mean and covariance -> Fréchet distance, by torch-fidelity's own formula."""

from dataclasses import dataclass

import numpy as np
from torch_fidelity.metric_fid import fid_statistics_to_metric


@dataclass(frozen=True)
class FeatureSums:
    """Count, sum and outer-product sum of feature rows: adding two is the same as seeing both sets of rows."""

    count: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureSums":
        """Return the sums of features (N, D)."""
        rows = features.astype(np.float64)
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        """Return the sums of both sets."""
        return FeatureSums(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean (D,) and unbiased covariance (D, D)."""
        mean = self.total / self.count
        return mean, (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureSums, second: FeatureSums) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017)."""
    statistics = [dict(zip(("mu", "sigma"), sums.statistics(), strict=True)) for sums in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])
