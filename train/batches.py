"""Latents and draws of each training step.

Everything is a function of (seed, step) and the row of the global batch: the same for any number of workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infra.seeding import stream
from train.config import Train
from train.models.config import Model
from train.models.patchify import patchify

if TYPE_CHECKING:  # a step needs no store
    from tokenize_jobs.store.reader import LatentStore

LAWS = {"uniform": np.random.Generator.random, "normal": np.random.Generator.standard_normal}


@dataclass(frozen=True)
class TrainingDraws:
    """Every random draw of one training step, for B images with n predicted tokens each."""

    order: Tensor
    """(B, L) generation order."""
    num_visible: int
    """L - n: the first tokens of the order, given to the model."""
    drop_label: Tensor
    """(B,) bool: replace the class by the null class."""
    head: Mapping[str, Tensor]
    """What the head's loss draws, by name."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "TrainingDraws":
        """Return the draws with every tensor changed."""
        head = {name: change(tensor) for name, tensor in self.head.items()}
        return TrainingDraws(change(self.order), self.num_visible, change(self.drop_label), head)


@dataclass(frozen=True)
class StepInput:
    """A micro-batch of B rows: `training_step` takes one or several."""

    tokens: Tensor
    """(B, L, C)."""
    labels: Tensor
    """(B,)."""
    draws: TrainingDraws
    dropout_seed: int = 0
    """Of torch's generators: dropout is the only draw left to torch."""
    weight: float = 1.0
    """Of its mean loss in the step's, on a worker; the mean over the workers is the loss of the global batch."""

    def to(self, device: torch.device) -> "StepInput":
        """Move to a device; from pinned memory, without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "StepInput":
        """Return it in memory from where a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "StepInput":
        draws = self.draws.each(change)
        return replace(self, tokens=change(self.tokens), labels=change(self.labels), draws=draws)


def training_draws(model: Model, seed: int, step: int, rows: range) -> TrainingDraws:
    """Return the draws of the rows `rows` of the global batch of a step."""
    length = model.num_tokens
    predicted = model.trunk.predicted(stream("mask", seed, step).random(), length)
    streams = [stream("row", seed, step, row) for row in rows]
    order = np.stack([np.asarray(model.trunk.training_order(random.permutation, length)) for random in streams])
    return TrainingDraws(
        order=torch.from_numpy(order),
        num_visible=length - predicted,
        drop_label=torch.from_numpy(np.array([random.random() < model.label_drop for random in streams])),
        head={
            name: torch.from_numpy(np.stack([LAWS[law](random, shape, dtype=np.float32) for random in streams], 1))
            for name, (law, shape) in model.head.training_draws(predicted, model.token_channels).items()
        },
    )


def step_inputs(
    store: "LatentStore",
    model: Model,
    config: Train,
    step: int,
    rank: int = 0,
    world: int = 1,
    *,
    equally_many: bool = False,
) -> list[StepInput]:
    """Return the micro-batches of one step that worker `rank` of `world` takes.

    They are the same for any number of workers; where the recipe names none, a worker's share is one. With
    `equally_many`, who has one less than others gets its last again, without weight: where weights are cut, all workers
    gather them for each micro-batch.
    """
    size = config.micro_batch or config.batch_size // world
    count = config.batch_size // size
    seed, weight = ("dropout", "micro-dropout")[bool(config.micro_batch)], world / count

    def make(number: int) -> StepInput:
        rows, first = range(number * size, (number + 1) * size), step * config.batch_size
        batch = store.batch(config.seed, range(first + rows.start, first + rows.stop))
        tokens = patchify(torch.from_numpy(batch.latents), model.patch_size)
        draws = training_draws(model, config.seed, step, rows)
        dropout = int(stream(seed, config.seed, step, number).integers(2**31))
        return StepInput(tokens, torch.from_numpy(batch.labels), draws, dropout, weight)

    made = [make(number) for number in range(rank * count // world, (rank + 1) * count // world)]
    is_short = equally_many and len(made) < -(-count // world)
    return [*made, replace(made[-1], weight=0.0)] if is_short else made
