"""One training step of MAR: read it beside Algorithm 1 and section 4 of Li et al. 2024. No Ray here."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.batches import StepInput
from train.ema import EMA
from train.models.autoregressor import Autoregressor
from train.models.transformer import take_rows
from train.optimizer import Optimization, reducing
from train.sharding import whole


def training_step(
    model: Autoregressor, network: nn.Module, ema: EMA, optimization: Optimization, micro_batches: Sequence[StepInput]
) -> dict[str, Tensor]:
    """Take one gradient step; returns what to log, still on the device. `network` is the model, or DDP around it.

    A step whose gradient is not finite is skipped: weights, optimizer and EMA stay. Nothing here waits for the device.
    """
    optimization.zero_grad()
    logged: dict[str, Tensor | float] = {}
    for inputs in micro_batches:
        torch.manual_seed(inputs.dropout_seed)
        tokens, draws = inputs.tokens, inputs.draws  # (B, L, C)
        masked = draws.order[:, draws.num_visible :].sort(1).values  # (B, n) positions: all but the first of the order
        with optimization.mixed_precision(tokens.device), reducing(network, last=inputs is micro_batches[-1]):
            # z (B, n, D): what visible tokens and class tell of each masked token; then the loss of p(token | z)
            condition = network(tokens, inputs.labels, draws.drop_label, draws.order, draws.num_visible)
            found = model.head.loss(take_rows(tokens, masked), condition, draws.head)
        (found.loss * inputs.weight).backward()
        terms = {"loss": found.loss.detach(), **found.terms}
        logged = {name: logged.get(name, 0.0) + value * inputs.weight for name, value in terms.items()}
    gradient_norm = whole(nn.utils.clip_grad_norm_(model.parameters(), optimization.grad_clip))
    optimization.step(skip := ~gradient_norm.isfinite())
    ema.update(model, skip)
    return {**logged, "grad_norm": gradient_norm}
