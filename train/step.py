"""One training step of MAR: read it beside Algorithm 1 and section 4 of Li et al. 2024. No Ray here."""

import torch
from torch import Tensor, nn

from train.ema import EMA
from train.models.autoregressor import TrainingDraws
from train.models.patchify import patchify
from train.optimizer import Optimization


def training_step(
    model: nn.Module, ema: EMA, optimization: Optimization, latents: Tensor, labels: Tensor, draws: TrainingDraws,
    *, patch_size: int, bf16: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Take one gradient step on latents (B, C, H, W) with labels (B,); returns what to log, still on the device.

    Raises FloatingPointError when the gradient is not finite; the weights are then untouched.
    """
    tokens = patchify(latents, patch_size)  # (B, L, D)
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=bf16):
        # The model encodes the visible tokens of `draws.order`, decodes a condition z for each masked one,
        # and takes the Diffusion Loss of the masked tokens given z: `Autoregressor.forward`.
        terms = model(tokens, labels, draws)
    optimization.zero_grad()
    terms.loss.backward()
    gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), optimization.grad_clip)
    if not gradient_norm.isfinite():
        raise FloatingPointError(f"gradient norm is {gradient_norm.item()}, loss {terms.loss.item()}")
    optimization.step()
    ema.update(model)
    return {"loss": terms.loss.detach(), **terms.terms, "grad_norm": gradient_norm}
