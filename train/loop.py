"""What each Ray Train worker runs: batches in, steps, checkpoints and a log out."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch.nn.parallel import DistributedDataParallel

from infra.ahead import one_ahead
from infra.follow import append
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.store.reader import LatentStore
from train.batches import seed_dropout, step_input
from train.checkpoint import load_progress, new_model, save_progress
from train.config import Train
from train.ema import EMA
from train.heldout_loss import HeldoutLoss
from train.models.config import Model
from train.optimizer import Optimization
from train.step import training_step
from train.watch import Watch


@dataclass(frozen=True)
class TrainJob:
    """What a worker is told."""

    config: Train
    model: Model
    latents: str
    log: str
    cores: int
    heldout: Heldout = NONE_HELD
    """What is not trained on, of the images in `latents`."""
    heldout_latents: str = ""
    """Latents of images that are not among them, or nothing."""


def train_worker(payload: dict[str, TrainJob]) -> dict[str, Any]:
    """Train to the last step, going on from the newest checkpoint of this run, if there is one."""
    job = payload["job"]
    config, context = job.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.cores)
    device = ray.train.torch.get_device()
    store = LatentStore(job.latents, heldout=job.heldout)
    model = new_model(job.model, config.seed).to(device)
    ema, optimization = EMA(model, config.ema_decay), Optimization(model, config)
    start = 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            start = load_progress(Path(folder), model, ema, optimization)
    network = model
    if world > 1:
        # the head is used outside of the wrapped forward: its hooks work there too, as long as no parameter is unused
        network = DistributedDataParallel(model, [device] if device.type == "cuda" else None, broadcast_buffers=False)
    log = _Log(Path(job.log), start, config.batch_size) if rank == 0 else None
    held = _held(job, store)
    heldout = HeldoutLoss(held, config, rank, world) if held is not None else None
    watch = Watch(config.max_skipped_steps)

    def make(step: int) -> Any:  # noqa: ANN401
        return step_input(store, job.model, config, step, rank, world)

    try:
        with one_ahead(make, range(start, config.train_steps)) as ahead:
            for step, inputs in ahead:
                seed_dropout(config.seed, step, rank)
                lr = optimization.lr
                done = step + 1
                watch.add(done, training_step(model, network, ema, optimization, inputs.to(device)))
                saves = done % config.checkpoint_every == 0 or done == config.train_steps
                found = {}
                if saves and heldout is not None:
                    found = heldout.measure(ema.model, optimization.mixed_precision(device), device)
                if done % config.log_every == 0 or done == config.train_steps or found:
                    terms = watch.fetch()  # by all workers: the gradient is the same, and so they end together
                    if log is not None:
                        log.write(done, {**terms, **found, "lr": lr})
                if saves:
                    _report({"step": done, **found}, rank, model, ema, optimization)
    except FloatingPointError as error:  # would happen again: not worth Ray's retries
        return {"failed": str(error)}
    return {"start": start, "images": len(store), "images_held_back": store.held_back}


def _held(job: TrainJob, store: LatentStore) -> LatentStore | None:
    """Return the images that are never trained on, in the scale of those that are; None where there are none."""
    if not job.heldout_latents:
        return store.held() if store.held_back else None
    held = LatentStore(job.heldout_latents)
    held.latent_scale = store.latent_scale
    return held


def _report(metrics: dict[str, float], rank: int, model: torch.nn.Module, ema: EMA, optimization: Optimization) -> None:
    """Hand rank 0's state to Ray Train, which stores it whole or not at all; a barrier for all workers."""
    name = f"step_{metrics['step']:08d}"
    if rank != 0:
        ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_progress(Path(folder), model, ema, optimization)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)


NOT_METRICS = ("step", "time", "images_per_second", "lr", "skipped", "skipped_step")
"""Of a line of the log; all else is what the step returned."""


class _Log:
    """Appends a line for each logged step; the driver follows the file."""

    def __init__(self, path: Path, start: int, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size
        self.last_step, self.last_time = start, time.monotonic()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        rate = (step - self.last_step) * self.batch_size / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        append(self.path, {"step": step, **metrics, "images_per_second": round(rate, 2), "time": time.time()})
