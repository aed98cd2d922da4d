"""Improved precision and recall (Kynkaanniemi et al. 2019) by torch-fidelity's own function: balls
to the 3rd neighbour.

Precision: the share of images inside a real one's ball; recall: of real ones inside an image's. The real ones are the
reference's kept features, at most 10,000 as in ADM's evaluation.
"""

import math

import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluate.metrics.sets import FeatureSet

_NEIGHBOURS = 3
_WHOLE, _BLOCK = 10_000, 2_000  # torch-fidelity's block; of more images than that, blocks that fit in memory


def measure(of: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """Return precision and recall; nothing where a set has no fourth image."""
    if min(len(of.features), len(real.features)) <= _NEIGHBOURS:
        return {}
    block = _WHOLE if max(len(of.features), len(real.features)) <= _WHOLE else _BLOCK
    both = (torch.from_numpy(of_.features) for of_ in (of, real))
    found = prc_features_to_metric(
        *both, prc_neighborhood=_NEIGHBOURS, prc_batch_size=block, save_cpu_ram=True, verbose=False
    )
    return {name: found[name] for name in ("precision", "recall")}


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:  # noqa: ARG001
    """Return precision's standard error, that of a share; recall depends on all images at once, and has none here."""
    share = found.get("precision")
    return {} if share is None else {"precision": math.sqrt(share * (1 - share) / len(of.features))}
