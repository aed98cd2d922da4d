"""Names and layout of the published VAR checkpoints <-> ours.

The published class embedding has the null class as its last row. Buffers that follow from the scales are left out here
and written there; the codebook and the phis are in the tokenizer's file, not in this one.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from train.models.config import Model
from train.models.heads import CategoricalHead
from train.models.tokens import MultiScaleTokens
from train.models.trunks import NextScaleTrunk

_RENAMED = {"word_embed.": "z_proj.word_embed.", "head.": "head.linear."}
_OF_TOKENIZER = "z_proj.scales."
_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
_PHIS = 4
_DEPTHS = (16, 20, 24, 30, 36)


def is_var(state: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors are named as VAR's are."""
    return "pos_1LC" in state


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names, but for those of the tokenizer."""
    ours = {_renamed(name, _RENAMED): of for name, of in state.items() if not name.endswith(_BUFFERS)}
    vectors = state["class_emb.weight"]
    ours["class_emb.weight"], ours["fake_latent"] = vectors[:-1], vectors[-1:]
    return ours


def to_published(state: Mapping[str, Tensor], config: Model) -> dict[str, Tensor]:
    """Return the tensors under the published names, with the buffers of the published files."""
    back = {ours: published for published, ours in _RENAMED.items()}
    published = {_renamed(name, back): of for name, of in state.items() if not name.startswith(_OF_TOKENIZER)}
    published["class_emb.weight"] = torch.cat([published["class_emb.weight"], published.pop("fake_latent")])
    like = published["pos_1LC"]
    levels = [scale for scale, count in enumerate(config.tokens.together) for _ in range(count)]
    level = torch.tensor(levels, device=like.device)
    published["lvl_1L"] = level[None]
    hidden = torch.zeros(config.num_tokens, config.num_tokens, device=like.device)
    published["attn_bias_for_masking"] = hidden.masked_fill(level[:, None] < level, -torch.inf)[None, None]
    for name in [name for name in published if name.endswith("attn.q_bias")]:
        published[name.replace("q_bias", "zero_k_bias")] = torch.zeros_like(published[name])
    return published


def recognise(state: Mapping[str, Tensor], heads: int | None = None) -> Model:
    """Return the shape of the model whose published tensors these are.

    The attention heads are those given, else told by the learned temperatures, else of 64 channels each. Raises
    ValueError when a tensor that tells the shape is missing.
    """
    try:
        classes, width = state["class_emb.weight"].shape
        codes, channels = len(state["head.weight"]), state["word_embed.weight"].shape[1]
        counts = state["lvl_1L"].flatten().bincount()
        hidden, heads = len(state["blocks.0.ffn.fc1.weight"]), heads or _heads(state, width)
    except KeyError as missing:
        raise ValueError(f"not a VAR checkpoint: tensor {missing} is missing") from None
    depth = _depth(state)
    scales = tuple(math.isqrt(count) for count in counts.tolist())
    return Model(
        latent_size=scales[-1], latent_channels=1, num_classes=classes - 1,
        tokens=MultiScaleTokens(codebook_size=codes, channels=channels, scales=scales, phis=_PHIS),
        trunk=NextScaleTrunk(
            width=width, depth=depth, heads=heads, mlp_ratio=hidden / width, drop_path=0.1 * depth / 24,
            adaln="shared" if "shared_ada_lin.1.weight" in state else "block",
            l2_norm="blocks.0.attn.scale_mul_1H11" in state,
        ),
        head=CategoricalHead(),
    )  # fmt: skip


def closest_size(state: Mapping[str, Tensor]) -> str:
    """Say which published size these tensors resemble most: of depth n it has 64 n channels."""
    width, depth = state["pos_1LC"].shape[-1], _depth(state)
    nearest = min(_DEPTHS, key=lambda of: abs(64 * of - width) + abs(of - depth))
    return f"it looks most like VAR-d{nearest}: width {width}, depth {depth}"


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def _heads(state: Mapping[str, Tensor], width: int) -> int:
    """Return the attention heads: of 64 channels each, where no temperature tells."""
    learned = state.get("blocks.0.attn.scale_mul_1H11")
    return learned.shape[1] if learned is not None else max(1, width // 64)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)
