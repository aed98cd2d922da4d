"""The cluster that work runs on."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import ray

from infra.cluster import Compute, Stage, Workers, check_held, connected, quiet_environment, usable_cores, workers_of
from infra.errors import InputError
from infra.stages import ElasticStage
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("token", [True, False])
def test_environment_of_a_machine_with_a_token_is_in_token_mode(token, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123")
    quiet_environment()
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if token else None)


@pytest.mark.ray
def test_worker_that_was_lent_no_gpu_sees_none(cluster):
    @ray.remote
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(visible.remote()) == ""


@pytest.mark.ray
def test_processes_of_a_local_cluster_take_it_for_theirs_and_the_command_keeps_its_environment():
    code = """
import os
from infra.cluster import Compute, connected, quiet_environment
quiet_environment()
import ray
before = dict(os.environ)
with connected(Compute()):
    seen = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert seen == ray.get_runtime_context().gcs_address, seen
changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
assert not {"RAY_ADDRESS", "RAY_GCS_SERVER_PORT"} & changed, changed
"""
    given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=given, check=True, timeout=120)


LAPTOP = [{"CPU": 2}]
EIGHT = [{"CPU": 96, "GPU": 8}]
FOUR_NODES = [{"CPU": 8}, *[{"CPU": 96, "GPU": 8}] * 4]
CONTAINER = [{"CPU": 4}]  # of a host with 128 cores
CORES_AS_GPUS = [{"CPU": 8, "GPU": 8}]
UNEVEN = [{"CPU": 4, "GPU": 1}, {"CPU": 16, "GPU": 4}]


@pytest.mark.parametrize(
    ("nodes", "stage", "beside", "expected"),
    [
        (LAPTOP, Compute().encode, 1, Workers(1, 1, 0)),
        (LAPTOP, Compute().train, 0, Workers(1, 2, 0)),
        (CONTAINER, Compute().train, 0, Workers(1, 4, 0)),
        (CONTAINER, Stage(workers=2), 0, Workers(2, 2, 0)),
        (EIGHT, Compute().encode, 1, Workers(8, 1, 1)),
        (EIGHT, Compute().train, 0, Workers(8, 4, 1)),
        (EIGHT, Stage(gpus=0.5), 0, Workers(16, 4, 0.5)),
        (EIGHT, Stage(gpus=0.1), 0, Workers(80, 1, 0.1)),
        (EIGHT, Stage(gpus=0), 0, Workers(1, 96, 0)),
        (EIGHT, Stage(gpus=2), 0, Workers(4, 4, 2)),
        (EIGHT, Stage(workers=2), 0, Workers(2, 4, 1)),
        (EIGHT, Stage(workers=16), 0, Workers(16, 1, 1)),  # refused, not lessened
        (EIGHT, Stage(cpus=24), 0, Workers(4, 24, 1)),
        (FOUR_NODES, Compute().encode, 1, Workers(32, 1, 1)),
        (FOUR_NODES, Compute().train, 0, Workers(32, 4, 1)),
        (FOUR_NODES, Stage(workers=4, gpus=0), 0, Workers(4, 96, 0)),
        (CORES_AS_GPUS, Compute().encode, 1, Workers(7, 1, 1)),
        (UNEVEN, Compute().train, 0, Workers(5, 4, 1)),
        ([], Compute().train, 0, Workers(1, 1, 0)),
    ],
)
def test_stage_takes_what_the_nodes_have_unless_told_otherwise(nodes, stage, beside, expected):
    assert workers_of(stage, nodes, beside) == expected


def test_what_a_default_stage_takes_is_held_by_any_nodes_with_two_cores():
    random = np.random.default_rng(5)
    for _ in range(500):
        nodes = [
            {"CPU": int(random.integers(0, 9)), "GPU": int(random.integers(0, 5))} for _ in range(random.integers(1, 5))
        ]
        nodes[0]["CPU"] += 2
        for name, beside in (("encode", 1), ("train", 0), ("generate", 0)):
            gpus = [None, 0, 0.25, 0.5, 1][random.integers(5)] if any(n["GPU"] and n["CPU"] > 1 for n in nodes) else 0
            stage = replace(getattr(Compute(), name), gpus=gpus)
            check_held(name, workers_of(stage, nodes, beside), nodes, beside=beside)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            Stage(workers=9),
            r"--compute.train.workers 9 x 1 cores and 1 GPUs: .* 96 cores and 8 GPUs on 1 nodes, which hold 8",
        ),
        (Stage(cpus=97), "hold 0 such workers"),
        (Stage(gpus=9), "hold 0 such workers"),
        (Stage(workers=-1), "positive numbers"),
        (Stage(cpus=-1), "positive numbers"),
        (Stage(gpus=1.5), "a part of one GPU or for whole GPUs"),
    ],
)
def test_workers_that_the_nodes_cannot_hold_are_refused(stage, message):
    with pytest.raises(InputError, match=message):
        check_held("train", workers_of(stage, EIGHT), EIGHT)


def test_nodes_that_an_autoscaler_may_add_count():
    workers = workers_of(Stage(workers=12, gpus=1), EIGHT)
    with pytest.raises(InputError, match="on 1 nodes, which hold 8 such workers"):
        check_held("train", workers, EIGHT)
    check_held("train", workers, EIGHT, EIGHT)
    check_held("train", workers, EIGHT, None)
    with pytest.raises(InputError, match="on 1 nodes and the 2 that may be added, which hold 0 such workers"):
        check_held("train", workers_of(Stage(cpus=97), EIGHT), EIGHT, EIGHT * 2)


def test_cores_are_those_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from infra.cluster import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.chaos
def test_cluster_of_several_nodes_refuses_what_no_node_holds_unless_it_may_add_one(no_cluster):
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.cluster_utils import Cluster as Nodes
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
    from ray.experimental.internal_kv import _internal_kv_put

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
    nodes.add_node(num_cpus=2, object_store_memory=100 << 20)
    try:
        with connected(Compute(address=nodes.address)) as cluster:
            assert cluster.train == Workers(1, 2, 0)
            with connected(Compute(train=ElasticStage(workers=2))) as cluster:
                assert cluster.train == Workers(2, 2, 0)
            too_large = Compute(train=ElasticStage(cpus=3))  # the cluster has four cores, but on no node three
            with pytest.raises(InputError, match="4 cores and 0 GPUs on 2 nodes, which hold 0"), connected(too_large):
                pass
            groups = [NodeGroupConfig(resources={"CPU": 4}, min_count=0, max_count=1, name="large")]
            report = ClusterConfig(node_group_configs=groups).SerializeToString()
            _internal_kv_put(
                GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, report, namespace=GCS_AUTOSCALER_STATE_NAMESPACE.encode()
            )
            with connected(too_large) as cluster:
                assert cluster.train == Workers(1, 3, 0)
            with (
                pytest.raises(InputError, match="the 1 that may be added"),
                connected(Compute(train=ElasticStage(cpus=5))),
            ):
                pass
    finally:
        nodes.shutdown()
