"""AdamW with the published parameter groups, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.config import Train
from train.models.autoregressor import Autoregressor

_STEP = "step_number"


def parameter_groups(model: Autoregressor, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: without decay vectors, biases, the head and what the model names; with decay the rest.

    What is not trained is in neither.
    """
    of_head = set(model.head.parameters())
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim == 1 or name.endswith((".bias", *model.not_decayed)) or parameter in of_head
        (plain if exempt else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: min(1.0, (1 - progress) / 0.95),
}
"""Share left of what the peak learning rate falls by, by the share done of the steps after the warm-up."""


def learning_rate(
    step: int, peak: float, warmup_steps: int, train_steps: int, schedule: str, last: float = 0.0
) -> float:
    """Return the rate of step `step` (0-based): linear warm-up, then the schedule's decay to `last` of the peak."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = DECAYS[schedule]((step - warmup_steps) / max(1, train_steps - warmup_steps))
    return peak * (last + (1 - last) * left)


def reducing(network: nn.Module, *, last: bool) -> AbstractContextManager:
    """Return the context of a micro-batch's forward pass: only the last one's gradients are summed over the workers."""
    return nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync()


class Optimization:
    """AdamW (0.9, 0.95), its schedule, gradient clip and precision: all of what a step needs to move the weights."""

    def __init__(self, model: Autoregressor, config: Train) -> None:
        self._config, self.grad_clip, self.step_number = config, config.grad_clip, 0
        groups = parameter_groups(model, config.weight_decay)
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)
        self._trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in self._trained.values():  # as AdamW begins them at its first step: a checkpoint goes into them
            taken, moments = torch.zeros((), device=parameter.device), [torch.zeros_like(parameter) for _ in range(2)]
            self.adamw.state[parameter] = {"step": taken, "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    def mixed_precision(self, device: torch.device) -> torch.autocast:
        """Return the context of a forward pass in the configured precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self._config.precision == "bf16")

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        config = self._config
        return learning_rate(
            self.step_number, config.lr, config.warmup_steps, config.train_steps, config.lr_schedule, config.last_lr
        )

    def step(self, skip: Tensor) -> None:
        """Move the weights, unless `skip`, a bool on their device; the step is counted either way."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr
        self.adamw.found_inf = skip.float()  # the fused kernel reads it there, as from a GradScaler
        self.adamw.step()
        self.step_number += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments of each weight, which take what is copied into them, and the step number."""
        moments = {
            f"{kind}.{name}": tensor if tensor.ndim else tensor.view(1)
            for name, parameter in self._trained.items()
            for kind, tensor in self.adamw.state[parameter].items()
        }
        return {**moments, _STEP: torch.tensor([self.step_number])}

    def loaded(self, state: Mapping[str, Tensor]) -> int:
        """Take the step number of a `state_dict`, into whose other tensors the moments were copied; returns it."""
        self.step_number = int(state[_STEP])
        return self.step_number
