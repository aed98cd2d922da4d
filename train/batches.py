"""Latents and draws of each training step, prepared one step ahead in a thread.

Everything is a function of (seed, step) and the row of the global batch: the same for any number of workers.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.seeding import stream
from tokenize_jobs.store.reader import LatentStore
from train.config import Train
from train.models.autoregressor import TrainingDraws
from train.models.config import Model
from train.models.masking import num_masked

LAWS = {"uniform": np.random.Generator.random, "normal": np.random.Generator.standard_normal}


@dataclass(frozen=True)
class StepInput:
    """What `training_step` takes, for the rows of one worker."""

    latents: Tensor
    labels: Tensor
    draws: TrainingDraws

    def to(self, device: torch.device) -> "StepInput":
        """Move to a device."""
        latents, labels = (tensor.to(device, non_blocking=True) for tensor in (self.latents, self.labels))
        return StepInput(latents, labels, self.draws.to(device))


def training_draws(model: Model, seed: int, step: int, rows: range) -> TrainingDraws:
    """Return the draws of the rows `rows` of the global batch of a step."""
    length = model.num_tokens
    masked = length
    if model.generation == "masked":
        masked = num_masked(stream("mask", seed, step).random(), length, model.mask_ratio_min)
    draws = [stream("row", seed, step, row) for row in rows]
    if model.generation == "raster-causal":
        order = np.tile(np.arange(length), (len(draws), 1))
    else:
        order = np.stack([random.permutation(length) for random in draws])
    return TrainingDraws(
        order=torch.from_numpy(order),
        num_visible=length - masked,
        drop_label=torch.from_numpy(np.array([random.random() < model.label_drop for random in draws])),
        head={
            name: torch.from_numpy(np.stack([LAWS[law](random, shape, dtype=np.float32) for random in draws], 1))
            for name, (law, shape) in model.head.training_draws(masked, model.token_channels).items()
        },
    )


def step_input(store: LatentStore, model: Model, config: Train, step: int, rank: int = 0, world: int = 1) -> StepInput:
    """Return the input of one step for worker `rank` of `world`, which must divide the global batch size."""
    share, first = config.batch_size // world, step * config.batch_size
    rows = range(rank * share, (rank + 1) * share)
    batch = store.batch(config.seed, range(first + rows.start, first + rows.stop))
    draws = training_draws(model, config.seed, step, rows)
    return StepInput(torch.from_numpy(batch.latents), torch.from_numpy(batch.labels), draws)


def one_ahead(make: Callable[[int], StepInput], steps: range) -> Iterator[tuple[int, StepInput]]:
    """Yield (step, make(step)), preparing the next one in a thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(make, steps.start) if len(steps) else None
        for step in steps:
            assert pending is not None
            ready = pending.result()
            pending = pool.submit(make, step + 1) if step + 1 in steps else None
            yield step, ready
