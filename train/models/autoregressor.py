"""What masked and causal autoregressive models share: inputs, class conditioning, positions and the loss head.

A model turns the tokens known so far into the condition of each token to predict; the head draws the
token from it. `order` (B, L) is the generation order: the positions, the first generated first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.models.config import Model
from train.models.diffloss import DiffusionLoss
from train.models.flow import FlowLoss
from train.models.head import LossTerms
from train.models.transformer import Block, init_linear_xavier, take_rows

HEADS = {"diffusion": DiffusionLoss, "flow": FlowLoss}


@dataclass(frozen=True)
class TrainingDraws:
    """Every random draw of one training step, for B images with n predicted tokens and M head draws each."""

    order: Tensor
    """(B, L) generation order."""
    num_visible: int
    """L - n: the first tokens of the order, given to the model."""
    drop_label: Tensor
    """(B,) bool: replace the class by the null class."""
    uniform: Tensor
    """(M, B, n) in [0, 1): the head's timesteps."""
    noise: Tensor
    """(M, B, n, C) standard normal: the head's noise."""

    def to(self, device: torch.device) -> "TrainingDraws":
        """Move the tensors to a device without waiting for it."""
        moved = (
            getattr(self, name).to(device, non_blocking=True) for name in ("order", "drop_label", "uniform", "noise")
        )
        order, drop_label, uniform, noise = moved
        return TrainingDraws(order, self.num_visible, drop_label, uniform, noise)


class Autoregressor(nn.Module):
    """Base of the two generations: `MAR` and `CausalAR` differ in how conditions are computed."""

    def __init__(self, config: Model, condition_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_width
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, condition_width))
        self.class_emb = nn.Embedding(config.num_classes, width)
        self.z_proj = nn.Linear(config.token_channels, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.diffloss = HEADS[config.head.kind](
            config.token_channels, condition_width, config.head.width, config.head.depth
        )

    def blocks(self, width: int, heads: int, depth: int) -> nn.ModuleList:
        """Return a stack of transformer blocks."""
        return nn.ModuleList(Block(width, heads, self.config.mlp_ratio, self.config.dropout) for _ in range(depth))

    def initialise(self) -> None:
        """Initialise all but the head as the published implementation does (the head did it itself)."""
        for name, module in self.named_children():
            if name != "diffloss":
                init_linear_xavier(module)
        for parameter in (*(p for _, p in self.named_parameters(recurse=False)), self.class_emb.weight):
            nn.init.normal_(parameter, std=0.02)

    def class_vectors(self, labels: Tensor | None, batch: int, drop_label: Tensor | None = None) -> Tensor:
        """Return (B, D): the class embedding, or the null vector where dropped or without labels."""
        null = self.fake_latent.expand(batch, -1)
        if labels is None:
            return null
        vectors = self.class_emb(labels)
        return vectors if drop_label is None else torch.where(drop_label[:, None], null, vectors)

    def forward(self, tokens: Tensor, labels: Tensor, draws: TrainingDraws) -> LossTerms:
        """Return the loss of predicting the tokens (B, L, C) that the draws mask, given labels (B,) and the rest."""
        class_vectors = self.class_vectors(labels, len(tokens), draws.drop_label)
        targets = draws.order[:, draws.num_visible :].sort(1).values
        condition = self.training_conditions(tokens, class_vectors, draws.order, draws.num_visible)
        return self.diffloss.loss(
            take_rows(tokens, targets).flatten(0, 1),
            condition.flatten(0, 1),
            draws.uniform.flatten(1, 2),
            draws.noise.flatten(1, 2),
        )

    def training_conditions(self, tokens: Tensor, class_vectors: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the condition (B, n, D) of each token after the first `num_visible` of the order, by position."""
        raise NotImplementedError

    def begin(self, class_vectors: Tensor, order: Tensor) -> Any:  # noqa: ANN401
        """Return the state of a generation: what `conditions` keeps from one step to the next."""
        raise NotImplementedError

    def conditions(self, state: Any, tokens: Tensor, start: int, stop: int) -> Tensor:  # noqa: ANN401
        """Return the condition (B, stop - start, D) of the tokens order[start:stop], by position.

        tokens (B, L, C) hold the values of order[:start]; the others are not read.
        """
        raise NotImplementedError
