"""The loss on images that are never trained on, with the same draws each time: a curve that only the weights move."""

from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import distributed

from train.batches import StepInput, step_inputs
from train.config import Train
from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.head import HeadLoss
from train.models.transformer import take_rows

if TYPE_CHECKING:
    from tokenize_jobs.store.reader import LatentStore

PREFIX = "heldout_"
"""Of the names that these losses have in the log."""
_PARTS, _FEWEST, _MOST = 16, 4, 32
IMAGES = _PARTS * _MOST
"""The most that a loss is the mean of; the fewest are 64: where there are fewer, each comes several times."""
_SEED = 0  # the same for every training, whatever its own: their curves can be compared


class HeldoutLoss:
    """Measures images in 16 parts, each with a share of masked tokens of its own, which the workers divide.

    The result does not depend on their number.
    """

    def __init__(self, store: "LatentStore", config: Train, rank: int = 0, world: int = 1) -> None:
        rows = min(max(len(store) // _PARTS, _FEWEST), _MOST)
        self._store, self._config = store, replace(config, seed=_SEED, batch_size=rows, micro_batch=0)
        # as many for each worker, some parts twice: where weights are cut, all gather them for each forward pass
        self._parts, self._world = [(rank + world * turn) % _PARTS for turn in range(-(-_PARTS // world))], world

    @torch.no_grad()
    def measure(
        self, model: Autoregressor, precision: AbstractContextManager, device: torch.device
    ) -> dict[str, float]:
        """Return the loss of `model`, which is in evaluation mode, and the head's terms of it; all workers call it."""
        found, asked = {}, _asked_alike(model.config)
        for part in self._parts:
            with precision:
                loss = loss_of(model, self._input(asked, part).to(device))
            found[part] = {name: term.item() for name, term in {"loss": loss.loss, **loss.terms}.items()}
        everywhere = [found]
        if self._world > 1:
            everywhere = [{}] * self._world
            distributed.all_gather_object(everywhere, found)
        by_part = {part: terms for each in everywhere for part, terms in each.items()}
        parts = [by_part[part] for part in range(_PARTS)]
        return {f"{PREFIX}{name}": fmean(terms[name] for terms in parts) for name in parts[0]}

    def _input(self, model: Model, part: int) -> StepInput:
        (only,) = step_inputs(self._store, model, self._config, part)
        return only


def _asked_alike(config: Model) -> Model:
    """Return the config with the shares of masked tokens that generation passes through, and without dropped labels.

    What a training chose of them would make its loss another question than that of others.
    """
    trunk = config.trunk
    alike = {"mask_ratio_min": 0.0} if hasattr(trunk, "mask_ratio_min") else {}
    return replace(config, trunk=replace(trunk, **alike), label_drop=0.0)


def loss_of(model: Autoregressor, inputs: StepInput) -> HeadLoss:
    """Return what `training_step` minimises, and its terms."""
    tokens, draws = inputs.tokens, inputs.draws
    masked = draws.order[:, draws.num_visible :].sort(1).values
    condition = model(tokens, inputs.labels, draws.drop_label, draws.order, draws.num_visible)
    return model.head.loss(take_rows(tokens, masked), condition, draws.head)
