"""Draws images' latents from a trained model: autoregressive steps outside, diffusion steps inside.

Li et al. 2024, section 4.3. Every draw comes from a `NoiseSource`, whose streams belong to single images:
image i of a seed is the same whatever the batch, the worker or its neighbours.
"""

import torch
from torch import Tensor

from evaluate.config import Sampling
from evaluate.sampling.known import Known
from evaluate.sampling.noise import NoiseSource
from evaluate.sampling.orders import generation_order, reveal_counts
from infra.ahead import one_ahead
from infra.errors import InputError
from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.patchify import patchify, unpatchify
from train.models.transformer import put_rows


def check(config: Model, settings: Sampling, labels: Tensor | None, known: Known | None = None) -> None:
    """Raise InputError for settings, labels or a mask that this model cannot sample with; computes nothing."""
    if known is not None:
        known.check(config)
    settings.check(config, config.num_tokens, () if known is None else known.keep.tolist())
    if labels is not None and len(labels) and not (0 <= int(labels.min()) <= int(labels.max()) < config.num_classes):
        raise InputError(
            f"labels must be from 0 to {config.num_classes - 1}, not {int(labels.min())}..{int(labels.max())}"
        )


@torch.no_grad()
def sample(
    model: Autoregressor,
    labels: Tensor | None,
    noise: NoiseSource,
    settings: Sampling,
    known: Known | None = None,
) -> Tensor:
    """Draw latents (B, C, H, W), float32, in the model's scale, for labels (B,), or unconditionally for None.

    With `known`, its kept tokens come back unchanged. Raises InputError as `check` does.
    """
    config = model.config
    check(config, settings, labels, known)
    device = next(model.parameters()).device
    length, channels = config.num_tokens, config.token_channels
    order = generation_order(settings.order, noise.order(length))
    batch = len(order)
    tokens = torch.zeros(batch, length, channels, device=device)
    given = 0
    if known is not None:
        tokens = patchify(known.latents.to(device).float(), config.patch_size)
        order = order.gather(1, (~known.keep[order]).long().argsort(dim=1, stable=True))  # kept tokens first
        given = int(known.keep.sum())
    order = order.to(device)
    counts = reveal_counts(settings.order, length - given, settings.ar_steps)
    heads = [settings.head_at(step) for step in range(len(counts))]

    def step_noise(step: int) -> Tensor:
        return noise.normal(model.head.sampling_draws(heads[step]), counts[step], channels).flatten(1, 2)

    bf16 = settings.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), one_ahead(step_noise, range(len(counts))) as ahead:
        guided = settings.cfg_scale != 1.0 and labels is not None
        vectors = model.class_vectors(labels.to(device) if labels is not None else None, batch)
        if guided:
            vectors, order = torch.cat([vectors, model.class_vectors(None, batch)]), order.repeat(2, 1)
        state = model.begin(vectors, order)

        start = given
        for step, draws in ahead:
            count = counts[step]
            condition = model.conditions(state, tokens.repeat(2, 1, 1) if guided else tokens, start, start + count)
            condition, null = (
                (half.flatten(0, 1) for half in condition.chunk(2)) if guided else (condition.flatten(0, 1), None)
            )
            cfg_scale = settings.cfg_at(length - start - count, length) if guided else 1.0
            drawn = model.head.sample(condition, draws.to(device, non_blocking=True), heads[step], null, cfg_scale)
            positions = order[:batch, start : start + count].sort(1).values
            tokens = put_rows(tokens, positions, drawn.view(batch, count, channels))
            start += count
    return unpatchify(tokens, config.patch_size)
