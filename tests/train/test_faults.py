"""A training on a real cluster that is hit: it ends with the bytes of the one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from infra.follow import logged
from tests.pipeline.tiny import REPOSITORY, wait_until
from tests.train.test_heldout_loss import half_held
from tests.train.test_progress import flip, truncate
from train.card import read_card

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
STEPS, EVERY = 300, 20
MEASURED_EVERY = 4 * EVERY


def measure(model, step, cores):
    """Die at one checkpoint, fail at another, and measure the others."""
    if step == MEASURED_EVERY:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 2 * MEASURED_EVERY:
        raise ValueError("no number today")
    assert (Path(model) / "ema.safetensors").exists()
    assert cores == 1
    return {"fd": float(step)}


def train_here(folder, measured=False, address="", steps=STEPS, most_workers=0):
    """Train on the store beside `folder`: what the processes below run."""
    from infra.cluster import Compute
    from infra.stages import ElasticStage
    from infra.storage import location
    from tests.train.test_training import MODEL
    from tokenize_jobs.sources.heldout import Heldout
    from train.config import Train
    from train.loop import Data
    from train.models.config import tiny
    from train.trainer import train
    from train.validation import Validation

    config = Train(
        model=tiny(32, 2, 4, 64, 2), train_steps=steps, batch_size=16, micro_batch=4, lr=1e-3, warmup_steps=10, precision="fp32",
        checkpoint_every=EVERY, log_every=5,
    )  # fmt: skip
    assert config.model.trunk == MODEL.trunk
    out = location(folder)
    data = Data(location(Path(folder).parent / "store"), Heldout(0.5))
    validation = Validation(measure, MEASURED_EVERY) if measured else None
    # one core each: with other numbers of threads, sums are rounded otherwise
    stage = ElasticStage(workers=1, most_workers=most_workers, cpus=1)
    compute = Compute(out=str(folder), address=address, train=stage)
    train(config, data, out, compute, print, validation=validation)


def start(folder, *arguments):
    folder.mkdir(exist_ok=True)
    code = f"from infra.cluster import quiet_environment; quiet_environment(); from tests.train.test_faults import train_here; train_here(*{(str(folder), *arguments)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, start_new_session=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def weights(folder):
    return [(folder / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")]


def checkpoints(folder):
    return sorted((folder / "ray_train").glob("step_*"))


def wait_for_step(folder, step, process):
    record = folder / "ray_train" / f"step_{step:08d}" / "part_00000-of-00001.json"
    wait_until(lambda: record.exists() or process.poll() is not None, 300, f"step {step}")


@pytest.fixture(scope="module")
def root(tmp_path_factory, no_cluster):
    root = tmp_path_factory.mktemp("trainings")
    half_held(root / "store")
    code, output = finish(start(root / "straight"))
    assert code == 0, output
    return root


def spoil(store, folder, most):
    """Overwrite the latents of the first images that are trained on by what is no number."""
    shard = folder / "shards" / "a.parquet"
    content = shard.read_bytes()
    rows = store.stored(np.arange(min(most, len(store))), np.zeros(min(most, len(store)), int))
    for row in np.asarray(rows, np.float16):
        assert row.tobytes() in content
        content = content.replace(row.tobytes(), np.full_like(row, np.nan).tobytes())
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_sigterm_saves_and_a_damaged_checkpoint_is_passed_over(damage, root):
    folder = root / damage.__name__
    process = start(folder)
    wait_for_step(folder, 2 * EVERY, process)
    os.kill(process.pid, signal.SIGTERM)
    code, output = finish(process)
    assert code != 0
    assert "stopped after step" in output
    newest = checkpoints(folder)[-1]
    assert int(newest.name[-8:]) == logged(folder / "metrics.jsonl")[-1]["step"] < STEPS
    damage(newest, np.random.default_rng(0))
    code, output = finish(start(folder))
    assert code == 0, output
    assert f"damaged checkpoint: {newest}" in output
    assert weights(folder) == weights(root / "straight")


@pytest.mark.parametrize("whom", ["worker", "driver"])
def test_sigkill_of_a_worker_or_the_driver_costs_time_alone(whom, root):
    folder = root / whom
    process = start(folder)
    wait_for_step(folder, 2 * EVERY, process)
    if whom == "worker":
        processes = psutil.Process(process.pid).children(recursive=True)
        next(p for p in processes if "RayTrainWorker" in " ".join(p.cmdline())).kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start(folder)
    code, output = finish(process)
    assert code == 0, output
    assert weights(folder) == weights(root / "straight")
    steps = [line["step"] for line in logged(folder / "metrics.jsonl")]
    assert steps == list(range(5, STEPS + 1, 5))


def test_measurement_that_dies_costs_the_training_nothing_and_the_best_is_kept(root):
    code, output = finish(start(root / "measured", True))
    assert code == 0, output
    found = {line["step"]: line for line in logged(root / "measured" / "evaluations.jsonl")}
    assert list(found) == list(range(MEASURED_EVERY, STEPS + 1, MEASURED_EVERY))
    assert "fd" not in found[MEASURED_EVERY]
    assert "no number today" in found[2 * MEASURED_EVERY]["failed"]
    assert found[3 * MEASURED_EVERY]["fd"] == 3 * MEASURED_EVERY
    best = read_card(root / "measured" / "best")
    assert best.train_steps == 3 * MEASURED_EVERY
    assert weights(root / "measured") == weights(root / "straight")


def test_disk_that_is_full_is_waited_for(root):
    folder = root / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        process = start(folder)
        wait_until(lambda: list(folder.glob("ray_train/step_*")) or process.poll() is not None, 300, "a save")
        time.sleep(15)
        assert process.poll() is None
        assert not list(folder.glob("ray_train/step_*/*.json"))
        assert subprocess.run(["mount", "-o", "remount,size=64m", folder]).returncode == 0
        code, output = finish(process)
        assert code == 0, output
        assert weights(folder) == weights(root / "straight")
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def test_steps_without_a_finite_gradient_are_skipped_and_told_and_a_run_of_them_ends_it(root):
    """One picture's latents are no numbers: it costs the steps that it is in. All of them end the training."""
    for name, most in (("one", 1), ("all", 90)):
        (root / name).mkdir()
        spoil(half_held(root / name / "store"), root / name / "store", most)
        code, output = finish(start(root / name / "out"))
        log = logged(root / name / "out" / "metrics.jsonl")
        if most == 1:
            assert code == 0, output
            assert 0 < sum(line.get("skipped", 0) for line in log) < STEPS / 2
            assert log[-1]["step"] == STEPS
        else:
            assert code == 1, output
            assert "training diverged: 10 steps in a row without a finite gradient; step 10" in output


@pytest.fixture
def nodes(monkeypatch):
    """A head that only schedules, and two nodes with a core for one worker each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield cluster
    cluster.shutdown()


def test_lost_node_costs_the_training_time_alone(nodes, root):
    """Its raylet is killed, which takes the only worker with it; the other node takes over from the last checkpoint."""
    folder = root / "raylet"
    process = start(folder, False, nodes.address)
    wait_for_step(folder, 2 * EVERY, process)
    begun = psutil.Process().children(recursive=True)  # others may train on this machine
    working = next(p for p in begun if "RayTrainWorker" in " ".join(p.cmdline()))
    killed = next(
        node for node in nodes.worker_nodes
        if node.all_processes["raylet"][0].process.pid in {parent.pid for parent in working.parents()}
    )  # fmt: skip
    nodes.remove_node(killed, allow_graceful=False)
    code, output = finish(process)
    assert code == 0, output
    assert weights(folder) == weights(root / "straight")
    assert [line["step"] for line in logged(folder / "metrics.jsonl")] == list(range(5, STEPS + 1, 5))


def test_node_that_is_drained_is_left_with_a_checkpoint(nodes, root):
    folder, log = root / "drained", root / "drained" / "metrics.jsonl"
    process = start(folder, False, nodes.address, 400, 2)
    wait_until(lambda: process.poll() is not None or (logged(log) or [{"step": 0}])[-1]["step"] > EVERY, 300, "steps")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address, "--node-id",
               next(iter(nodes.worker_nodes)).node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message",
               "spot", "--deadline-remaining-seconds", "120"]  # fmt: skip
    drained = subprocess.run(command, capture_output=True, text=True)
    assert drained.returncode == 0, drained.stdout + drained.stderr
    code, output = finish(process)
    assert code == 0, output
    assert "a node will be taken away: saved after step" in output
    assert {line["workers"] for line in logged(log)} == {1, 2}
    steps = [line["step"] for line in logged(log)]
    assert steps == sorted({*range(5, 401, 5), *steps})  # and one line where it left


MANY_STEPS = 100_000
LOSS_ROUNDING = 2e-3
"""Relative: gradients of two workers are added in another order than those of one, for hundreds of steps."""


def test_nodes_leave_and_come_while_training_goes_on(nodes, root):
    folder, log = root / "elastic", root / "elastic" / "metrics.jsonl"
    process = start(folder, False, nodes.address, MANY_STEPS, 2)

    def workers_are(count):
        return lambda: process.poll() is not None or (logged(log) or [{"workers": 0}])[-1]["workers"] == count

    try:
        wait_until(workers_are(2), 300, "training by two")
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        wait_until(workers_are(1), 300, "training by one")
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        wait_until(workers_are(2), 300, "training by two again")
        assert process.poll() is None
        process.terminate()
        _, output = finish(process)
        assert "stopped after step" in output
    finally:
        process.kill()
    undisturbed = {line["step"]: line["loss"] for line in logged(root / "straight" / "metrics.jsonl")}
    found = {line["step"]: line["loss"] for line in logged(log)}
    both = undisturbed.keys() & found.keys()
    assert list(found) == [*range(5, max(found), 5), max(found)], "each fifth, and the one where it left"
    assert max(both) > 2 * EVERY
    for step in both:
        assert found[step] == pytest.approx(undisturbed[step], rel=LOSS_ROUNDING), step
