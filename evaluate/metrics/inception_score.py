"""Inception Score (Salimans et al. 2016) of the extractor's class logits, by torch-fidelity's own function: ten splits.

It is the published score only on Inception's logits.
"""

import math

import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from evaluate.metrics.sets import FeatureSet

NAME = "inception_score"
_SPLITS = 10


def measure(of: FeatureSet, real: FeatureSet) -> dict[str, float]:  # noqa: ARG001  metrics have one signature
    """Return the mean over the splits; nothing where the extractor is no classifier."""
    return {} if len(of.logits) < _SPLITS else {NAME: _score(of)["inception_score_mean"]}


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:  # noqa: ARG001
    """Return the standard error of that mean."""
    return {} if len(of.logits) < _SPLITS else {NAME: _score(of)["inception_score_std"] / math.sqrt(_SPLITS - 1)}


def _score(of: FeatureSet) -> dict[str, float]:
    return isc_features_to_metric(torch.from_numpy(of.logits), splits=_SPLITS)
