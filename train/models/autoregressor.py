"""What masked and causal autoregressive models share: inputs, class conditioning, positions and the loss head.

A model turns the tokens known so far into the condition of each token to predict; the head draws the
token from it. `order` (B, L) is the generation order: the positions, the first generated first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.models.config import Model
from train.models.head import HeadLoss
from train.models.transformer import Block, init_linear_xavier, take_rows


@dataclass(frozen=True)
class TrainingDraws:
    """Every random draw of one training step, for B images with n predicted tokens each."""

    order: Tensor
    """(B, L) generation order."""
    num_visible: int
    """L - n: the first tokens of the order, given to the model."""
    drop_label: Tensor
    """(B,) bool: replace the class by the null class."""
    head: Mapping[str, Tensor]
    """What the head's loss draws, by name."""

    def to(self, device: torch.device) -> "TrainingDraws":
        """Move the tensors to a device without waiting for it."""
        order, drop_label = (tensor.to(device, non_blocking=True) for tensor in (self.order, self.drop_label))
        head = {name: tensor.to(device, non_blocking=True) for name, tensor in self.head.items()}
        return TrainingDraws(order, self.num_visible, drop_label, head)


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
        self.head = config.head.build(config.token_channels, condition_width)

    def blocks(self, width: int, heads: int, depth: int) -> nn.ModuleList:
        """Return a stack of transformer blocks."""
        return nn.ModuleList(Block(width, heads, self.config.mlp_ratio, self.config.dropout) for _ in range(depth))

    def initialise(self) -> None:
        """Initialise all but the head as the published implementation does (the head did it itself)."""
        for module in self.children():
            if module is not self.head:
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

    def forward(self, tokens: Tensor, labels: Tensor, draws: TrainingDraws) -> HeadLoss:
        """Return the loss of predicting the tokens (B, L, C) that the draws mask, given labels (B,) and the rest."""
        class_vectors = self.class_vectors(labels, len(tokens), draws.drop_label)
        targets = draws.order[:, draws.num_visible :].sort(1).values
        condition = self.training_conditions(tokens, class_vectors, draws.order, draws.num_visible)
        return self.head.loss(take_rows(tokens, targets), condition, draws.head)

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
