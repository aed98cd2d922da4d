"""Kernel distance of features (Binkowski et al. 2018) by torch-fidelity's own function: 100 subsets of 1,000 images.

Sets of fewer images are compared in subsets of as many as the smaller one has; the distance is unbiased in N.
"""

import numpy as np
import torch
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

from evaluate.metrics.sets import FeatureSet

_SUBSET, _GROUPS = 1000, 10


def measure(of: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """Return the distance to the reference's kept features; nothing where there are fewer than two."""
    subset = min(_SUBSET, len(of.features), len(real.features))
    if subset < 2:
        return {}
    both = (torch.from_numpy(of_.features) for of_ in (of, real))
    return {
        "kid": kid_features_to_metric(*both, kid_subset_size=subset, verbose=False)["kernel_inception_distance_mean"]
    }


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:  # noqa: ARG001
    """Return its standard error, from the spread of the distances of tenths of the images."""
    size = min(_SUBSET, len(of.features) // _GROUPS, len(real.features))
    if size < 2:
        return {}
    groups = np.array_split(of.features, _GROUPS)
    kept = real.features[:: len(real.features) // size][:size]  # of all classes: a source may be sorted by them
    distances = [float(kernel_mmd(group[:size], kept)) for group in groups]
    return {"kid": float(np.std(distances, ddof=1) / np.sqrt(_GROUPS))}
