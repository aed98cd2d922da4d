"""Draws images' latents from a trained model: autoregressive steps outside, diffusion steps inside.

Li et al. 2024, section 4.3. Every draw comes from a `NoiseSource`, whose streams belong to single images:
image i of a seed is the same whatever the batch, the worker or its neighbours.
"""

import torch
from torch import Tensor

from evaluate.config import Sampling
from evaluate.sampling.confidence import most_confident, to_gumbel
from evaluate.sampling.known import Known
from evaluate.sampling.noise import NoiseSource
from evaluate.sampling.orders import generation_order, reveal_counts
from infra.ahead import made_ahead
from infra.errors import InputError
from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.patchify import patchify, unpatchify
from train.models.transformer import put_rows, take_rows


def check(config: Model, settings: Sampling, labels: Tensor | None, known: Known | None = None) -> None:
    """Raise InputError for settings, labels or a mask that this model cannot sample with; computes nothing."""
    if known is not None:
        known.check(config)
    settings.check(config, () if known is None else known.keep.tolist())
    if labels is None and config.label_drop == 0:
        raise InputError("the model was trained with label_drop 0, so it has learned nothing of images without a class")
    if labels is not None and len(labels) and not (0 <= int(labels.min()) <= int(labels.max()) < config.num_classes):
        raise InputError(
            f"labels must be from 0 to {config.num_classes - 1}, not {int(labels.min())}..{int(labels.max())}"
        )


def _start(config: Model, order: Tensor, known: Known | None, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return tokens (B, L, C), the order (B, L) with the kept ones first, and how many are kept."""
    if known is None:
        blank = torch.zeros(len(order), config.num_tokens, config.token_channels, device=device)
        return blank, order.to(device), 0
    tokens = patchify(known.latents.to(device).float(), config.patch_size)
    if config.tokens.together:  # whole scales are drawn, and what is kept takes the place of what was drawn there
        return tokens, order.to(device), 0
    order = order.gather(1, (~known.keep[order]).long().argsort(dim=1, stable=True))
    return tokens, order.to(device), int(known.keep.sum())


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
    tokens, order, given = _start(config, generation_order(settings.order, noise.order(length)), known, device)
    batch, keep = len(order), None if known is None else known.keep.to(device)
    counts = config.tokens.together or reveal_counts(settings.order, length - given, settings.ar_steps)
    heads = [settings.head_at(step) for step in range(len(counts))]

    by_confidence = settings.order == "confidence"
    asked = [sum(counts[step:]) for step in range(len(counts))] if by_confidence else counts

    def step_noise(step: int) -> tuple[Tensor, Tensor | None]:
        draws = noise.normal(model.head.sampling_draws(heads[step]), asked[step], channels).flatten(1, 2)
        if device.type == "cuda" and not draws.is_cuda:  # copied by itself, while the host goes on
            draws = draws.pin_memory()
        return draws, noise.normal(1, asked[step], 1)[0, :, :, 0] if by_confidence else None

    bf16 = settings.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), made_ahead(step_noise, range(len(counts))) as ahead:
        guided = settings.cfg_scale != 1.0 and labels is not None
        vectors = model.class_vectors(labels.to(device) if labels is not None else None, batch)
        if guided:
            vectors, order = torch.cat([vectors, model.class_vectors(None, batch)]), order.repeat(2, 1)
        state = model.begin(vectors, order)

        start = given
        for step, (draws, choice) in ahead:
            count, stop = counts[step], start + asked[step]
            condition = model.conditions(state, tokens.repeat(2, 1, 1) if guided else tokens, start, stop)
            condition, null = (
                (half.flatten(0, 1) for half in condition.chunk(2)) if guided else (condition.flatten(0, 1), None)
            )
            cfg_scale = settings.cfg_at(step, length - start - count, length) if guided else 1.0
            drawn = model.head.sample(condition, draws.to(device, non_blocking=True), heads[step], null, cfg_scale)
            positions, drawn = order[:batch, start:stop].sort(1).values, drawn.view(batch, -1, channels)
            if known is not None:
                drawn = torch.where(keep[positions][..., None], take_rows(tokens, positions), drawn)
            if choice is not None:
                density = model.head.log_density(drawn.flatten(0, 1), condition, null, cfg_scale).view(batch, -1)
                surest = most_confident(density, to_gumbel(choice.to(device)), settings.choice_noise_at(step))
                positions, drawn = positions.gather(1, surest), take_rows(drawn, surest)
                order = torch.cat([order[:, :start], positions.repeat(len(order) // batch, 1)], 1)
                state = model.begin(vectors, order)
            tokens = put_rows(tokens, positions[:, :count], drawn[:, :count])
            start += count
    return unpatchify(tokens, config.patch_size, config.grid)
