"""A training on a real cluster that is hit: it ends with the bytes of the one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.follow import logged
from tests.pipeline.tiny import REPOSITORY, wait_until
from tests.train.test_heldout_loss import half_held
from tests.train.test_progress import flip, truncate
from train.card import read_card

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
STEPS, EVERY = 300, 20


def measure(model, step, cores):
    """Die at one checkpoint, fail at another, and measure the others."""
    if step == 2 * EVERY:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 4 * EVERY:
        raise ValueError("no number today")
    assert (Path(model) / "ema.safetensors").exists()
    assert cores == 1
    return {"fd": float(abs(step - 6 * EVERY))}


def train_here(folder, measured=False):
    """Train on the store beside `folder`: what the processes below run."""
    from infra.cluster import Compute
    from infra.storage import location
    from tests.train.test_training import MODEL
    from tokenize_jobs.sources.heldout import Heldout
    from train.config import Train
    from train.loop import Data
    from train.models.config import tiny
    from train.trainer import train
    from train.validation import Validation

    config = Train(
        model=tiny(32, 2, 4, 64, 2), train_steps=STEPS, batch_size=16, micro_batch=4, lr=1e-3, warmup_steps=10, precision="fp32",
        checkpoint_every=EVERY, log_every=5,
    )  # fmt: skip
    assert config.model.trunk == MODEL.trunk
    out = location(folder)
    data = Data(location(Path(folder).parent / "store"), Heldout(0.5))
    validation = Validation(measure, 2 * EVERY) if measured else None
    train(config, data, out, Compute(out=str(folder)), print, validation=validation)


def start(folder, measured=False):
    folder.mkdir(exist_ok=True)
    code = f"from infra.cluster import quiet_environment; quiet_environment(); from tests.train.test_faults import train_here; train_here({str(folder)!r}, {measured})"
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
    record = folder / "ray_train" / f"step_{step:08d}" / "progress.json"
    wait_until(lambda: record.exists() or process.poll() is not None, 300, f"step {step}")


@pytest.fixture(scope="module")
def root(tmp_path_factory, no_cluster):
    root = tmp_path_factory.mktemp("trainings")
    half_held(root / "store")
    code, output = finish(start(root / "straight"))
    assert code == 0, output
    return root


@pytest.mark.parametrize("damage", [truncate, flip])
def test_sigterm_saves_and_a_damaged_checkpoint_is_passed_over(damage, root):
    import numpy as np

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
    code, output = finish(start(root / "measured", measured=True))
    assert code == 0, output
    found = {line["step"]: line for line in logged(root / "measured" / "evaluations.jsonl")}
    assert list(found) == list(range(2 * EVERY, STEPS + 1, 2 * EVERY))
    assert "fd" not in found[2 * EVERY]
    assert "no number today" in found[4 * EVERY]["failed"]
    assert found[6 * EVERY]["fd"] == 0
    best = read_card(root / "measured" / "best")
    assert best.train_steps == 6 * EVERY
    assert weights(root / "measured") == weights(root / "straight")


def test_disk_that_is_full_is_waited_for(root):
    folder = root / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        process = start(folder)
        wait_until(
            lambda: list(folder.glob("ray_train/step_*/progress.pt")) or process.poll() is not None, 300, "a save"
        )
        time.sleep(15)
        assert process.poll() is None
        assert not list(folder.glob("ray_train/step_*/progress.json"))
        assert subprocess.run(["mount", "-o", "remount,size=64m", folder]).returncode == 0
        code, output = finish(process)
        assert code == 0, output
        assert weights(folder) == weights(root / "straight")
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
