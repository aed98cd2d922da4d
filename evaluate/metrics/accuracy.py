"""Class accuracy: the share of images that a classifier takes for the class they were drawn as."""

import math

import numpy as np

from evaluate.metrics.sets import FeatureSet

NAME = "accuracy"


def measure(of: FeatureSet, real: FeatureSet) -> dict[str, float]:  # noqa: ARG001  metrics have one signature
    """Return the share; nothing without a classifier."""
    return {NAME: float(np.mean(of.judged == of.labels))} if len(of.judged) else {}


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:  # noqa: ARG001
    """Return the standard error of the share."""
    share = found.get(NAME)
    return {} if share is None else {NAME: math.sqrt(share * (1 - share) / len(of.judged))}


def by_class(of: FeatureSet) -> dict[int, float]:
    """Return the accuracy of each class that was drawn; nothing without a classifier."""
    if not len(of.judged):
        return {}
    return {int(label): float(np.mean(of.judged[of.labels == label] == label)) for label in np.unique(of.labels)}
