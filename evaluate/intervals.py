"""Standard error of a Fréchet distance: a jackknife over twenty groups of images.

It is the error of the distance expected of *this many* images: the distance itself is biased, larger for fewer images,
and no error bar says so. With fewer images than features the matrices are those of the images, not of the features.
"""

from functools import reduce
from operator import add

import numpy as np

GROUPS = 20


def frechet_error(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Return the standard error of the distance of features (N, D) to a Gaussian with this mean and covariance.

    Deleting a group of a twentieth at a time (Efron & Tibshirani 1993, chapter 11); the groups are runs of the order.
    """
    groups = min(GROUPS, len(features))
    if groups < 2:
        return float("nan")
    few = len(features) <= features.shape[1]
    traces = (_traces_of_few if few else _traces_of_many)(features, covariance, groups)
    total = features.sum(0, dtype=np.float64)
    distances = []
    for group, (own, shared) in zip(np.array_split(features, groups), traces, strict=True):
        rest = (total - group.sum(0, dtype=np.float64)) / (len(features) - len(group))
        distances.append(np.square(rest - mean).sum() + own - 2 * shared)
    return float(np.sqrt((groups - 1) * np.var(distances)))


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _traces_of_many(features: np.ndarray, covariance: np.ndarray, groups: int) -> list[tuple[float, float]]:
    """Return, without each group, tr S1 and tr (S2^1/2 S1 S2^1/2)^1/2 from D x D matrices."""
    root = _square_root(covariance)
    parts, found = np.array_split(features, groups), []
    counts, totals, outers = reduce(lambda one, other: tuple(map(add, one, other)), map(_sums, parts))
    for count, total, outer in map(_sums, parts):  # again, for all of them at once are gigabytes
        left, rest = counts - count, totals - total
        own = (outers - outer - np.outer(rest, rest) / left) / (left - 1)
        found.append((float(np.trace(own)), _root_trace(root @ own @ root)))
    return found


def _sums(group: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    rows = group.astype(np.float64)
    return len(rows), rows.sum(0), rows.T @ rows


def _traces_of_few(features: np.ndarray, covariance: np.ndarray, groups: int) -> list[tuple[float, float]]:
    """Return the same from N x N matrices: X S2 X^T has the eigenvalues of S2^1/2 X^T X S2^1/2."""
    rows = features.astype(np.float64)
    rows -= rows.mean(0)
    own, shared = rows @ rows.T, rows @ covariance @ rows.T
    found = []
    for group in np.array_split(np.arange(len(rows)), groups):
        left = np.delete(np.arange(len(rows)), group)
        centred = [_centred(matrix[np.ix_(left, left)]) / (len(left) - 1) for matrix in (own, shared)]
        found.append((float(np.trace(centred[0])), _root_trace(centred[1])))
    return found


def _centred(gram: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of rows less their mean."""
    means = gram.mean(0)
    return gram - means - means[:, None] + means.mean()


def _root_trace(symmetric: np.ndarray) -> float:
    return float(np.sqrt(np.linalg.eigvalsh(symmetric).clip(0)).sum())
