"""Tokenization when things break: nodes, actors and drivers killed, two jobs at once, a full disk, no bucket.

Each job is a process of its own, as a user starts it; the cluster has three nodes (raylets) on this machine.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.tokenizers.small import Shape
from tokenize_jobs.tokenizers.small_kl import SmallKL

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
SHARDS, IMAGES = 6, 100


@pytest.fixture(scope="module")
def nodes():
    """A head that only schedules, and two nodes that work."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20})
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures") / "source"
    folder.mkdir()
    for shard in range(SHARDS):
        images = np.random.default_rng(shard).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
        pictures = [encoded(Image.fromarray(image).resize((64, 64))) for image in images]
        write_tar(
            folder / f"s{shard}.tar",
            [(f"{shard}-{i}.{s}", c) for i, png in enumerate(pictures) for s, c in (("png", png), ("cls", b"0"))],
        )
    SmallKL(Shape(stride=4, channels=4, width=64, depth=2)).write(folder.parent / "tokenizer")
    return folder


class Job:
    """`mar tokenize` on the cluster, in a session of its own."""

    def __init__(self, source: Path, out: Path, address: str, encoders: int = 2) -> None:
        command = [
            sys.executable, "-m", "pipeline", "tokenize", str(source), "--images.num-classes", "1",
            "--tokenizer", f"fitted:{source.parent / 'tokenizer'}", "--tokenize.image-size", "64",
            "--compute.latents", str(out), "--compute.out", f"{out}-runs",
            "--compute.encode.workers", str(encoders), "--compute.address", address,
        ]  # fmt: skip
        self.out = out
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def wait_for_shards(self, count: int) -> None:
        """Wait until some shards are committed, but not all."""
        while len(self.committed()) < count:
            assert self.process.poll() is None, self.process.stdout.read()
            time.sleep(0.05)
        assert len(self.committed()) < SHARDS

    def committed(self) -> list[Path]:
        return list(self.out.glob("artifacts/latents/fitted-64/*/commits/*.json"))

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        return output


def store_bytes(out: Path) -> dict[str, str]:
    (store,) = out.glob("artifacts/latents/fitted-64/*")
    shards = [f"{folder}/{path.name}" for folder in ("shards", "commits") for path in (store / folder).iterdir()]
    names = ["manifest.json", "quarantine.parquet", *shards]
    return {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in sorted(names)}


@pytest.fixture(scope="module")
def undisturbed(nodes, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    Job(source, out, nodes.address).finish()
    found = store_bytes(out)
    assert len(found) == 2 + 2 * SHARDS
    return found


def test_job_encoder_killed_ends_with_the_same_bytes(nodes, source, undisturbed, tmp_path):
    job = Job(source, tmp_path, nodes.address)
    job.wait_for_shards(1)
    encoders = [p for p in psutil.process_iter(["cmdline"]) if "ray::PartEncoder" in " ".join(p.info["cmdline"] or [])]
    assert encoders
    encoders[0].kill()
    job.finish()
    assert store_bytes(tmp_path) == undisturbed


def test_job_driver_killed_and_run_again_reads_only_the_rest_and_ends_with_the_same_bytes(
    nodes, source, undisturbed, tmp_path
):
    job = Job(source, tmp_path, nodes.address)
    job.wait_for_shards(2)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.process.wait()
    kept = {path: path.stat().st_mtime_ns for path in job.committed()}
    again = Job(source, tmp_path, nodes.address)
    assert f"{SHARDS} shards, " in (output := again.finish())
    assert int(output.split(f"{SHARDS} shards, ")[1].split()[0]) >= len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert store_bytes(tmp_path) == undisturbed


def test_two_jobs_racing_for_one_store_both_end_with_the_same_bytes(nodes, source, undisturbed, tmp_path):
    first, second = (Job(source, tmp_path, nodes.address, encoders=1) for _ in range(2))
    first.finish()
    second.finish()
    assert store_bytes(tmp_path) == undisturbed


def test_job_node_killed_ends_with_the_same_bytes(nodes, source, undisturbed, tmp_path):
    job = Job(source, tmp_path, nodes.address)
    job.wait_for_shards(1)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    job.finish()
    assert store_bytes(tmp_path) == undisturbed


def test_disk_that_is_full_is_an_error_and_the_rerun_goes_on(nodes, source, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        job = Job(source, disk, nodes.address)
        output, _ = job.process.communicate(timeout=300)
        assert job.process.returncode == 2, output
        assert "No space left on device" in output
        assert "run again to go on" in output
        assert "Traceback" not in output
        assert not list(disk.glob("artifacts/latents/fitted-64/*/manifest.json"))
        assert subprocess.run(["mount", "-o", "remount,size=64m", disk]).returncode == 0
        Job(source, disk, nodes.address).finish()
        assert store_bytes(disk) == undisturbed
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
