"""How many workers train where nobody has said so."""

import pytest

from infra.cluster import Compute, Workers
from infra.stages import ElasticStage
from train.config import Train
from train.trainer import _workers


@pytest.mark.parametrize(("gpus", "expected"), [(1.0, 4), (0.5, 1), (2.0, 4), (0.0, 4)])
def test_workers_that_would_share_a_gpu_are_one(gpus, expected):
    found = Workers(count=4, cpus=1, gpus=gpus)
    assert _workers(Train(batch_size=8), Compute(train=ElasticStage(gpus=gpus)), found).count == expected
