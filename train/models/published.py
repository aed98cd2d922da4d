"""Names and layout of the published checkpoints <-> ours: MAR's here, VAR's in `published_var.py`.

All names are the same but for the head: the published one is called "diffloss", and keeps one AdaLN projection per
block where ours keeps one for all; its rows are the published ones in order.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from train.models import published_var
from train.models.config import Model, mar_base, mar_huge, mar_large
from train.models.heads import CategoricalHead, DiffusionHead
from train.models.trunks import MaskedTrunk, NextScaleTrunk

_NET = "diffloss.net."
_FUSED = {kind: f"head.net.modulation.{kind}" for kind in ("weight", "bias")}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names; the projections of MAR's head are joined."""
    if published_var.is_var(state):
        return published_var.from_published(state)
    depth = _count(state, rf"{re.escape(_NET)}res_blocks\.(\d+)\.")
    ours = {
        name.replace("diffloss.", "head.").replace("final_layer.linear", "final_linear"): tensor
        for name, tensor in state.items()
        if "adaLN_modulation" not in name
    }
    for kind, fused in _FUSED.items():
        ours[fused] = torch.cat([state[name] for name in _modulations(depth, kind)])
    return ours


def to_published(state: Mapping[str, Tensor], config: Model) -> dict[str, Tensor]:
    """Return the tensors under the published names. Raises ValueError for a model without a published form."""
    head = config.head
    if isinstance(config.trunk, NextScaleTrunk) and isinstance(head, CategoricalHead):
        return published_var.to_published(state, config)
    if not isinstance(config.trunk, MaskedTrunk) or not isinstance(head, DiffusionHead) or head.variance != "learned":
        raise ValueError("only MAR with a diffusion head of learned variance, and VAR, have a published layout")
    width, depth = config.head.width, config.head.depth
    published = {
        name.replace("final_linear", "final_layer.linear").replace("head.", "diffloss.", 1): tensor
        for name, tensor in state.items()
        if name not in _FUSED.values()
    }
    sizes = [3 * width] * depth + [2 * width]
    for kind, fused in _FUSED.items():
        parts = state[fused].split(sizes)
        published |= {name: part.clone() for name, part in zip(_modulations(depth, kind), parts, strict=True)}
    return published


def recognise(state: Mapping[str, Tensor], patch_size: int = 1, heads: int | None = None) -> Model:
    """Return the shape of the model whose published-layout tensors these are.

    Heads do not show in any shape: they are the published size's, or 64 channels each, unless given.
    Raises ValueError when a tensor that tells the shape is missing.
    """
    if published_var.is_var(state):
        return published_var.recognise(state, heads)
    try:
        channels = state["z_proj.weight"].shape[1]
        encoder_width, decoder_width = state["fake_latent"].shape[1], state["mask_token"].shape[2]
        tokens = state["diffusion_pos_embed_learned"].shape[1]
        buffer = state["encoder_pos_embed_learned"].shape[1] - tokens
        head_width = state[f"{_NET}input_proj.weight"].shape[0]
        classes, hidden = state["class_emb.weight"].shape[0], state["encoder_blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise ValueError(f"not a MAR checkpoint: tensor {missing} is missing ({closest_size(state)})") from None
    known = {size.trunk.encoder_width: size.trunk.encoder_heads for size in (mar_base(), mar_large(), mar_huge())}
    trunk = MaskedTrunk(
        buffer_size=buffer,
        encoder_width=encoder_width,
        encoder_depth=_count(state, r"encoder_blocks\.(\d+)\."),
        encoder_heads=heads or known.get(encoder_width, max(1, encoder_width // 64)),
        decoder_width=decoder_width,
        decoder_depth=_count(state, r"decoder_blocks\.(\d+)\."),
        decoder_heads=heads or known.get(decoder_width, max(1, decoder_width // 64)),
        mlp_ratio=hidden / encoder_width,
    )
    return Model(
        latent_size=round(tokens**0.5) * patch_size,
        latent_channels=channels // patch_size**2,
        patch_size=patch_size,
        num_classes=classes,
        trunk=trunk,
        head=DiffusionHead(width=head_width, depth=_count(state, rf"{re.escape(_NET)}res_blocks\.(\d+)\.")),
    )


def closest_size(state: Mapping[str, Tensor]) -> str:
    """Say which published size these tensors resemble most, by depth and width."""
    if published_var.is_var(state):
        return published_var.closest_size(state)
    sizes = {"MAR-B": mar_base().trunk, "MAR-L": mar_large().trunk, "MAR-H": mar_huge().trunk}
    widths = [tensor.shape[-1] for name, tensor in state.items() if name.endswith("norm1.weight")]
    width, depth = max(widths, default=0), _count(state, r"encoder_blocks\.(\d+)\.")
    if not widths:
        return "it resembles no published size"
    nearest = min(
        sizes, key=lambda name: abs(sizes[name].encoder_width - width) + abs(sizes[name].encoder_depth - depth)
    )
    return f"it looks most like {nearest}: width {width}, encoder depth {depth}"


def check_against(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first missing, extra or mis-shaped tensors, if any."""
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [
        f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for kind, found in (("missing", missing), ("unexpected", extra), ("mis-shaped", shaped))
        if found
    ]
    if faults:
        raise ValueError(f"tensors do not fit: {'; '.join(faults)}; {closest_size(state)}")


def _modulations(depth: int, kind: str) -> list[str]:
    blocks = [f"{_NET}res_blocks.{index}.adaLN_modulation.1.{kind}" for index in range(depth)]
    return [*blocks, f"{_NET}final_layer.adaLN_modulation.1.{kind}"]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})
