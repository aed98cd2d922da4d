"""How many workers train where nobody has said so."""

import os
import subprocess
import sys

import pytest

from infra.cluster import Compute, Workers
from infra.stages import ElasticStage
from train.config import Train
from train.loop import KEEPING_MEMORY
from train.trainer import _workers

_STEPS_IN_A_THREAD = """
import resource, threading
def steps():
    for step in range(60):
        activations = [bytes([step]) * (300 << 10) for _ in range(20)]
        if step == 20:
            began.append(faults())
faults, began = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(faults() - began[0])
"""


@pytest.mark.parametrize(("gpus", "expected"), [(1.0, 4), (0.5, 1), (2.0, 4), (0.0, 4)])
def test_workers_that_would_share_a_gpu_are_one(gpus, expected):
    found = Workers(count=4, cpus=1, gpus=gpus)
    assert _workers(Train(batch_size=8), Compute(train=ElasticStage(gpus=gpus)), found).count == expected


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc's settings")
def test_memory_that_a_step_in_a_thread_frees_is_there_for_the_next():
    faults = [
        int(subprocess.check_output([sys.executable, "-c", _STEPS_IN_A_THREAD], env=os.environ | of, text=True))
        for of in ({}, KEEPING_MEMORY)
    ]
    assert faults[1] < 100 < faults[0]
