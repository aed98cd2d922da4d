"""What the training loop costs beside its steps: Ray, waiting for data, checkpoints; and what a second worker brings.

    python -m benchmarks.loop

Trains a small model with steps of some 50 ms on one core, in turns in a plain loop, as `mar train` does, and by two
workers. The other core is kept busy at the lowest priority all the while: a core is slower beside a busy one, by a
third on some machines, and Ray's own processes would be taken for an overhead. Prints Markdown; some five minutes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latents import KL16
from benchmarks.machine import conditions, square_products
from infra.ahead import made_ahead
from infra.cluster import Compute, connected, quiet_environment
from infra.console import say
from infra.follow import logged
from infra.stages import ElasticStage
from infra.storage import location
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from train.batches import step_inputs
from train.config import Train
from train.ema import EMA
from train.models.build import build_model
from train.models.config import Model, mar_base, tiny
from train.optimizer import Optimization
from train.progress import snapshot
from train.results import LOG
from train.step import training_step

IMAGES, STEPS, WARM, ROUNDS = 2000, 260, 60, 4
CONFIG = Train(
    model=tiny(32, 1, 2, 32, 1), train_steps=STEPS, batch_size=4, micro_batch=2, lr=1e-4, warmup_steps=10,
    precision="fp32", checkpoint_every=STEPS, log_every=20,
)  # fmt: skip


def store_of(folder: Path) -> str:
    """Write latents of KL-16's shape; returns where."""
    moments = np.random.default_rng(0).standard_normal((2, IMAGES, *KL16.shape)).astype(np.float16)
    labels = list(np.arange(IMAGES) % 4)
    commit_shard(
        location(folder), "a", to_table(KL16, [str(image) for image in range(IMAGES)], labels, *moments), KL16, []
    )
    about = {"classes": list("abcd"), "tokenizer": {"kind": "pixels", "weights": "w"}}
    publish(location(folder), ["a"], KL16, about)
    return str(folder)


def plain_seconds(store: str, config: Train = CONFIG, warm: int = WARM) -> list[float]:
    """Return the seconds of a step in a loop without Ray, log or checkpoint: of each few steps, as `trained` has it."""
    torch.set_num_threads(1)
    latents, model = LatentStore(store), build_model(config.on(KL16, 4)).train()
    ema, optimization = EMA(model, config.ema_decay), Optimization(model, config)
    times = [time.perf_counter()]
    inputs_of = partial(step_inputs, latents, model.config, config)
    with made_ahead(inputs_of, range(config.train_steps), 4) as ahead:
        for _, inputs in ahead:
            training_step(model, model, ema, optimization, inputs)
            times.append(time.perf_counter())
    marks = times[warm :: config.log_every]
    return [(after - before) / config.log_every for before, after in pairwise(marks)]


def trained(store: str, out: Path, workers: int) -> tuple[list[float], float]:
    """Train as `mar train` does; returns the seconds of a step between lines of the log, and the share of the time that
    data was waited for."""
    stage = ElasticStage(workers=workers, cpus=1)
    from train.loop import Data  # Ray reads the environment when it is imported
    from train.trainer import train

    train(CONFIG, Data(location(store)), location(out), Compute(out=str(out), train=stage), lambda _: None)
    return of_log(logged(out / LOG))


def of_log(lines: list[dict[str, Any]], warm: int = WARM) -> tuple[list[float], float]:
    """Return what `trained` does, from a log's lines after the warm-up but the last, which has a checkpoint."""
    lines = [line for line in lines if line["step"] >= warm][:-1]
    steps = [(after["time"] - before["time"]) / (after["step"] - before["step"]) for before, after in pairwise(lines)]
    waited = sum(line["data_seconds"] for line in lines[1:])
    return steps, waited / (lines[-1]["time"] - lines[0]["time"])


def stalls(shape: Model) -> tuple[float, list[float]]:
    """Return GB of a model's state, and the seconds in which a checkpoint holds its training up: the first, and later.

    What is asynchronous is all but the copy to the host's memory, which is measured.
    """
    model = build_model(shape)
    parts = model, EMA(model, 0.9), Optimization(model, CONFIG)
    pieces, times = None, []
    for _ in range(4):
        began = time.perf_counter()
        pieces = snapshot(*parts, into=pieces)
        times.append(time.perf_counter() - began)
    return sum(piece.values.nbytes for piece in pieces.values()) / 1e9, times


@contextmanager
def beside_a_busy_core() -> Iterator[None]:
    """Keep a core multiplying, behind whatever else wants it."""
    burner = get_context("spawn").Process(target=_burn, daemon=True)
    burner.start()
    try:
        yield
    finally:
        burner.kill()
        burner.join()


def _burn() -> None:
    os.nice(19)
    torch.set_num_threads(1)
    work = square_products(torch.float32, torch.device("cpu"))
    while True:
        work()


def main() -> None:
    """Print the table."""
    quiet_environment()
    say(f"{conditions()}\n\n| what | ratio | figures |\n|---|---|---|")
    size, (first, *later) = stalls(mar_base().on(latent_size=16, latent_channels=16, num_classes=1000))
    say(
        f"| checkpoint of MAR-B, held up | - | {size:.1f} GB: {statistics.median(later):.2f} s, the first {first:.2f} |"
    )
    with tempfile.TemporaryDirectory() as name, beside_a_busy_core():
        root = Path(name)
        store = store_of(root / "store")
        with connected(Compute(out=str(root))):
            plain, under_ray, two, waited = plain_seconds(store), [], [], []
            for turn in range(ROUNDS):
                seconds, data = trained(store, root / f"one-{turn}", 1)
                under_ray += seconds
                waited.append(data)
                plain += plain_seconds(store)
                two += trained(store, root / f"two-{turn}", 2)[0]
        say(row("step under Ray against a plain loop, time", under_ray, plain))
        say(f"| waiting for data, of the time | {statistics.median(waited):.2%} | |")
        say(row("one worker of one core against two, time", under_ray, two))


def row(what: str, over: list[float], under: list[float]) -> str:
    """Return the line that compares the lower quartiles of some intervals' seconds a step: neighbours only add."""
    first, second = (1e3 * statistics.quantiles(of, n=4)[0] for of in (over, under))
    return f"| {what} | {first / second:.3f}x | {first:.1f} against {second:.1f} ms, of {len(over)} and {len(under)} |"


if __name__ == "__main__":
    main()
