"""What each Ray Train worker runs: batches in, steps, checkpoints and a log out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from upath import UPath

from infra.ahead import made_ahead
from infra.errors import InputError
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.store.reader import LatentStore
from train.batches import StepInput, step_inputs
from train.config import Train
from train.ema import EMA
from train.heldout_loss import HeldoutLoss
from train.log import Log
from train.memory import recompute_blocks
from train.models.autoregressor import compile_training
from train.models.config import Model
from train.optimizer import Optimization
from train.progress import load_progress, newest_whole
from train.rate import device_rate, operations
from train.saving import Saver
from train.sharding import spread
from train.start import Start, initial_model
from train.step import training_step
from train.validation import DRAINED
from train.watch import Watch
from train.workers import as_the_first_says, mean_of_all

STOPPED, PREEMPTED, FAILED, REFUSED = "stopped", "preempted", "failed", "refused"
"""Why the workers have left before the end, as they return it."""
_ASK_SECONDS = 5.0
"""Between two looks whether the workers are to leave: a slow step must not cost the notice."""
KEEPING_MEMORY = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}  # fmt: skip
"""Environment of a worker: Ray Train's steps run in a thread, from which glibc takes memory back as soon as it is free;
the next step would get it again page by page, hundreds of faults a step. Other C libraries do not read it."""
_AHEAD = 4
"""Steps whose latents and draws are made before they are due: a slow read of the store holds nobody up."""


@dataclass(frozen=True)
class Data:
    """Latents to train on, and those that are not trained on."""

    store: UPath
    heldout: Heldout = NONE_HELD
    """What is not trained on, of the images in `store`."""
    heldout_store: UPath | None = None
    """Latents of images that are not among them."""
    tokenizer: TokenizerFile | None = None
    """What encoded them: a model that reads sums of codes needs its codebook."""


@dataclass(frozen=True)
class TrainJob:
    """What a worker is told."""

    config: Train
    model: Model
    data: Data
    latent_scale: float
    """Factor on the stores' latents."""
    log: str
    cores: int
    progress: str
    """Folder of what a later run goes on from."""
    stop: str
    """A file: when it appears, the workers write what they have and leave."""
    begin: str = ""
    """Progress to begin with where `progress` holds none, or nothing."""
    of: Mapping[str, Any] = field(default_factory=dict)
    """What tells this training apart from others: kept with its progress."""
    noticing: bool = False
    """Ray tells of nodes that will be taken away."""
    sharded: bool = False
    """Weights, averages and moments are cut among the workers."""
    recomputing: bool = False
    """Blocks are computed again in the backward pass."""
    measured_every: int = 0
    """Steps between checkpoints that are measured meanwhile; 0 for none."""
    start: Start | None = None
    """What the first step starts from in place of random weights."""


def train_worker(payload: dict[str, TrainJob]) -> dict[str, Any]:
    """Train to the last step, going on from the newest checkpoint of this run, if there is one.

    Raises InputError where one of several workers finds what it is given damaged: Ray ends those that wait for it.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        return _Worker(payload["job"], rank, world, ray.train.torch.get_device()).train()
    except FloatingPointError as error:  # of all workers; it would happen again: not worth Ray's retries
        return {FAILED: str(error)}
    except InputError as error:
        if world > 1:
            raise
        return {REFUSED: str(error)}


class _Worker:
    """One of the processes that train, with the state that all of them have."""

    def __init__(self, job: TrainJob, rank: int, world: int, device: torch.device) -> None:
        torch.set_num_threads(job.cores)
        self.job, self.rank, self.world, self.device, config = job, rank, world, device, job.config
        self.store = LatentStore(str(job.data.store), heldout=job.data.heldout)
        self.store.latent_scale = job.latent_scale
        self.progress = self._find_progress()
        start = None if self.progress else job.start  # whose weights would be read in vain
        self.model = initial_model(job.model, config.seed, start, job.data.tokenizer).to(device)
        self.ema = EMA(self.model, config.ema_decay)
        if job.recomputing:  # the averages' copy has no backward pass
            recompute_blocks(self.model)
        self.cut = cut = job.sharded and world > 1
        if config.compile and device.type == "cuda":  # on a processor it takes a minute and gains nothing
            compile_training(self.model, cut=cut)
        self.network = spread(self.model, self.ema.model, device, world, cut=cut)
        self.optimization = Optimization(self.model, config)
        self.start = self._go_on()
        self.asked, self.asked_at, self.asks_at = time.monotonic(), self.start, self.start + 1
        held = _held(job, self.store)
        self.heldout = HeldoutLoss(held, config, rank, world) if held is not None else None
        self.watch, self.saver = (
            Watch(config.max_skipped_steps, mean_of_all),
            Saver(Path(job.progress), rank, world, job.of),
        )
        self.log = self._new_log() if rank == 0 else None

    def _new_log(self) -> Log:
        config = self.job.config
        # images a second that all workers' devices could take, as far as their multiplications go
        most = device_rate(self.device, config.precision) * self.world / operations(self.job.model)
        return Log(Path(self.job.log), self.start, config.batch_size, most, self.device, self.world)

    def _go_on(self) -> int:
        """Take the newest checkpoint that is whole; returns the number of steps done."""
        folder = self.progress
        return load_progress(folder, self.model, self.ema, self.optimization) if folder else 0

    def _find_progress(self) -> Path | None:
        """Return the newest checkpoint that is whole, which the first worker finds.

        It reads all of it for the checksums; the others wait for that without the time limit of the group.
        """
        newest = newest_whole(Path(self.job.progress)) if self.rank == 0 else None
        found = newest or (Path(self.job.begin) if self.job.begin else None)
        return ray.train.collective.broadcast_from_rank_zero(found)

    def train(self) -> dict[str, Any]:
        """Take the steps that are left. Raises FloatingPointError when too many in a row are not finite."""
        steps = range(self.start, self.job.config.train_steps)
        with made_ahead(self._inputs, steps, _AHEAD) as ahead:
            for step, inputs in self.log.timing(ahead) if self.log else ahead:
                lr = self.optimization.lr
                on_device = [each.to(self.device) for each in inputs]
                terms = training_step(self.model, self.network, self.ema, self.optimization, on_device)
                self.watch.add(step + 1, terms)
                if why := self._after(step + 1, lr):
                    return {why: step + 1}
        return {"start": self.start, "images": len(self.store), "images_held_back": self.store.held_back}

    def _inputs(self, step: int) -> list[StepInput]:
        made = step_inputs(
            self.store, self.job.model, self.job.config, step, self.rank, self.world, equally_many=self.cut
        )
        return [each.pinned() for each in made] if self.device.type == "cuda" else made

    def _after(self, done: int, lr: float) -> str:
        """Log and save where it is due after this many steps; returns why the workers are to leave, if they are."""
        config, is_last = self.job.config, done == self.job.config.train_steps
        logs = done % config.log_every == 0 or is_last
        leaves = self._asked_to_leave(done) if not is_last else ""
        saves = done % config.checkpoint_every == 0 or is_last or leaves
        if logs or saves:
            # by all workers: the gradient is the same, and so they end together; and before what is timed as a
            # checkpoint: the device has the steps behind it then
            terms = self.watch.fetch()
            found = self._heldout_losses() if saves else {}
            if self.log is not None:
                self.log.write(done, {**terms, **found, "lr": lr})
        if saves:
            metrics = {"step": done, **found}
            seconds = self.saver.save(
                metrics,
                self.model,
                self.ema,
                self.optimization,
                last=is_last or bool(leaves),
                measured=self._is_measured(done),
            )
            if self.log is not None:
                self.log.held_up(seconds)
        return leaves

    def _asked_to_leave(self, done: int) -> str:
        """Return why the workers are to save and leave, if they are; all of them ask, once in some seconds."""
        if done < self.asks_at:
            return ""
        since, self.asked = time.monotonic() - self.asked, time.monotonic()
        steps = max(1, int((done - self.asked_at) * _ASK_SECONDS / max(since, 1e-3)))
        self.asked_at, self.asks_at = done, done + as_the_first_says(min(steps, self.job.config.log_every))
        if self.job.noticing and ray.train.get_preemption_info() is not None:
            (Path(self.job.progress) / DRAINED).touch()
            return PREEMPTED
        return STOPPED if as_the_first_says(Path(self.job.stop).exists()) else ""

    def _is_measured(self, done: int) -> bool:
        """Tell whether it is the first checkpoint since `measured_every` more steps were done."""
        every, before = self.job.measured_every, (done - 1) // self.job.config.checkpoint_every
        return every > 0 and done // every > before * self.job.config.checkpoint_every // every

    def _heldout_losses(self) -> dict[str, float]:
        if self.heldout is None:
            return {}
        began = time.monotonic()
        found = self.heldout.measure(self.ema.model, self.optimization.mixed_precision(self.device), self.device)
        if self.log is not None:
            self.log.held_up(time.monotonic() - began)
        return found


def _held(job: TrainJob, store: LatentStore) -> LatentStore | None:
    """Return the images that are never trained on, in the scale of those that are; None where there are none."""
    if job.data.heldout_store is None:
        return store.held() if store.held_back else None
    held = LatentStore(str(job.data.heldout_store))
    held.latent_scale = job.latent_scale
    return held
