"""Improved precision and recall (Kynkaanniemi et al. 2019) by torch-fidelity's own function: balls
to the 3rd neighbour.

Precision: the share of images inside a real one's ball; recall: of real ones inside an image's. The real ones are the
reference's kept features, at most 10,000 as in ADM's evaluation.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluate.metrics.sets import FeatureSet

_NEIGHBOURS, _GROUPS = 3, 10
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


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:
    """Return standard errors: precision's is that of a share, since the real images' balls are fixed.

    Recall depends on all generated images at once: its error is the spread of the recalls of tenths of them. (Leaving
    a group out moves the balls of all others' neighbours: a jackknife would be half as large again.)
    """
    share = found.get("precision")
    if share is None:
        return {}
    bars, count = {"precision": math.sqrt(share * (1 - share) / len(of.features))}, len(of.features)
    if count >= _GROUPS * (_NEIGHBOURS + 2):
        parts = torch.from_numpy(of.features).tensor_split(_GROUPS)
        recalls = [_recall(part, torch.from_numpy(real.features)) for part in parts]
        bars["recall"] = float(np.std(recalls, ddof=1) / math.sqrt(_GROUPS))
    return bars


def _recall(generated: Tensor, real: Tensor) -> float:
    """Return the share of real images inside the ball of a generated one."""
    radii = torch.cdist(generated, generated).kthvalue(_NEIGHBOURS + 1).values
    inside = [(torch.cdist(rows, generated) <= radii).any(1) for rows in real.split(_BLOCK)]
    return float(torch.cat(inside).float().mean())
