"""How long a training stands still when its worker, or that one's node, is killed: from the kill to the next step done.

    python -m benchmarks.recovery

Two nodes of one core each, which are processes of this machine, and a small training by one worker on one of them. The
worker is killed, then the raylet of its node, whose part the other node takes. Prints Markdown, each row when it is
measured; some three minutes on two cores. Ray reads the environment when it is imported, which is why that comes late.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from benchmarks.machine import conditions
from infra.cluster import Compute, quiet_environment
from infra.console import say
from infra.follow import logged
from infra.stages import ElasticStage
from infra.storage import location
from train.config import Train
from train.models.config import tiny
from train.results import LOG

CONFIG = Train(
    model=tiny(32, 1, 2, 32, 1), train_steps=1_000_000, batch_size=2, micro_batch=1, lr=1e-4, warmup_steps=10,
    precision="fp32", checkpoint_every=50, log_every=1,
)  # fmt: skip
_TRAINED_BEFORE, _MOST_SECONDS, _STORE_BYTES = 120, 900, 100 << 20


def endless(store: str, out: str, address: str) -> None:
    """Train until killed."""
    from train.loop import Data
    from train.trainer import train

    compute = Compute(out=out, address=address, train=ElasticStage(workers=1, cpus=1))
    with redirect_stdout(sys.stderr):  # the table is printed beside it
        train(CONFIG, Data(location(store)), location(out), compute, lambda _: None)


def worker() -> psutil.Process:
    """Return the process that trains, of those that this one has begun."""
    begun = psutil.Process().children(recursive=True)
    return next(process for process in begun if "RayTrainWorker" in " ".join(process.cmdline()))


def raylet() -> psutil.Process:
    """Return the raylet above it, with which its node ends."""
    return next(process for process in worker().parents() if process.name() == "raylet")


def stood_still(log: Path, victim: Callable[[], psutil.Process], driver: BaseProcess) -> str:
    """Kill a process of a training, and return what it cost, as the end of a row."""
    until = _last_step(log) + _TRAINED_BEFORE
    _wait(lambda: _last_step(log) >= until, driver)
    process, trains, reached = victim(), worker(), _last_step(log)
    process.kill()
    began = time.time()
    psutil.wait_procs([process, trains])  # a worker goes on for a moment after its raylet
    ended = time.time()
    _wait(lambda: logged(log)[-1]["time"] > ended, driver)
    first = next(line for line in logged(log) if line["time"] > ended)
    return f"{first['time'] - began:.1f} s | step {first['step']}, {reached} was reached before |"


def _last_step(log: Path) -> int:
    lines = logged(log)
    return lines[-1]["step"] if lines else 0


def _wait(reached: Callable[[], bool], driver: BaseProcess) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while not reached():
        if not driver.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the training ended, or stands still")
        time.sleep(0.2)


@contextmanager
def nodes() -> Iterator[str]:
    """Give the address of a cluster whose head takes no work, with two nodes of one core."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
        yield cluster.address
    finally:
        cluster.shutdown()


def main() -> None:
    """Print the table."""
    quiet_environment()
    from benchmarks.loop import store_of

    say(f"{conditions()}\n\n| killed | to the next step | which |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name, nodes() as address:
        out = Path(name) / "out"
        out.mkdir()
        words = store_of(Path(name) / "store"), str(out), address
        driver = get_context("spawn").Process(target=endless, args=words, daemon=True)
        driver.start()
        try:
            for killed, victim in (("the worker", worker), ("the raylet of its node", raylet)):
                say(f"| {killed} | {stood_still(out / LOG, victim, driver)}")
        finally:
            driver.kill()
            driver.join()


if __name__ == "__main__":
    main()
