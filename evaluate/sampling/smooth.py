"""Pictures of a next-scale model from soft codes (VAR's `more_smooth`): nicer to look at, and never measured."""

import torch
from torch import Tensor

from evaluate.config import Sampling
from evaluate.sampling.confidence import to_gumbel
from evaluate.sampling.known import Known
from evaluate.sampling.noise import NoiseSource
from evaluate.sampling.sampler import check
from infra.errors import InputError
from train.models.autoregressor import Autoregressor
from train.models.categorical import filtered
from train.models.var import VAR

_FIRST_TAU, _FALL, _LEAST_TAU = 0.27, 0.95, 0.005


@torch.no_grad()
def sample_smooth(
    model: Autoregressor, labels: Tensor | None, noise: NoiseSource, settings: Sampling, known: Known | None = None
) -> Tensor:
    """Draw feature maps (B, C, S, S) for labels (B,), or for the number of the noise's images without a class.

    In place of a drawn code stands the mean of the codebook by softmax((logits * (1 + r) + Gumbel) / tau), where r goes
    from 0 to 1 over the scales and tau falls. Raises InputError as `check` does, and for other trunks.
    """
    if not isinstance(model, VAR):
        raise InputError(f"--smooth: a {model.config.trunk.kind} model adds up no scales; it is for next-scale models")
    config, device = model.config, next(model.parameters()).device
    check(config, settings, labels, known)
    batch = len(noise.order(config.num_tokens))
    guided = settings.cfg_scale != 1.0 and labels is not None
    vectors = model.class_vectors(labels.to(device) if labels is not None else None, batch)
    state = model.begin(torch.cat([vectors, model.class_vectors(None, batch)]) if guided else vectors, noise)
    codebook, start = model.z_proj.scales.codebook.vectors, 0
    for scale, count in enumerate(model.counts):
        share, rows = scale / max(len(model.counts) - 1, 1), slice(start, start := start + count)
        condition, null = model.next_scale(state).chunk(2) if guided else (model.next_scale(state), None)
        cfg_scale = settings.cfg_at(scale, config.num_tokens - start, config.num_tokens)
        logits = model.head.logits(condition, null, cfg_scale) / settings.temperature
        logits = filtered(logits, settings.top_k, settings.top_p)
        gumbel = to_gumbel(noise.normal(1, count, len(codebook))[0].to(device)).float()
        tau = max(_FIRST_TAU * (1 - _FALL * share), _LEAST_TAU)
        soft = ((logits * (1 + share) + gumbel) / tau).softmax(-1) @ codebook
        if known is not None:
            source = model.z_proj.vectors(known.latents.to(device)[:, 0, rows, 0].long())
            soft = torch.where(known.keep.to(device)[rows, None], source, soft)
        state.features = model.z_proj.summed(state.features, soft.repeat(2, 1, 1) if guided else soft, scale)
    return state.features[:batch]
