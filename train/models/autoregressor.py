"""What masked and causal autoregressive models share: inputs, class conditioning, positions and the loss head.

A model turns the tokens known so far into the condition of each token to predict; the head draws the
token from it. `order` (B, L) is the generation order: the positions, the first generated first.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from train.models.diffloss import DiffusionLoss
from train.models.flow import FlowLoss
from train.models.head import Head, LossTerms
from train.models.transformer import Block, init_linear_xavier, take_rows

HEADS = {"diffusion": DiffusionLoss, "flow": FlowLoss}


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape of an autoregressive model on continuous tokens. Defaults: MAR-B on 256 px with a stride-16 tokenizer."""

    generation: Literal["masked", "random-causal", "raster-causal"] = "masked"
    """masked: MAR, bidirectional, many tokens a step; the causal ones generate one token a step (paper, Table 1)."""
    latent_size: int = 16
    """Side of the square latents."""
    latent_channels: int = 16
    """Channels of the latents."""
    patch_size: int = 1
    """Latents are grouped p x p into tokens."""
    num_classes: int = 1000
    """Class labels 0..num_classes-1."""
    buffer_size: int = 64
    """Rows holding the class vector in front of the tokens."""
    encoder_width: int = 768
    """Channels of the encoder, and of a causal model's single stack."""
    encoder_depth: int = 12
    """Blocks of the encoder; a causal model stacks encoder_depth + decoder_depth blocks."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_width: int = 768
    """Channels of the decoder (masked only)."""
    decoder_depth: int = 12
    """Blocks of the decoder."""
    decoder_heads: int = 12
    """Attention heads of the decoder (masked only)."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over the block's width."""
    dropout: float = 0.1
    """In attention and after each projection, while training."""
    label_drop: float = 0.1
    """Share of training images whose class is replaced by the null class: what guidance needs."""
    mask_ratio_min: float = 0.7
    """Smallest masked share in training (masked only)."""
    head: Head = field(default_factory=Head)
    """The per-token loss head."""

    @property
    def num_tokens(self) -> int:
        """L, tokens of an image."""
        return (self.latent_size // self.patch_size) ** 2

    @property
    def token_channels(self) -> int:
        """C, numbers in a token."""
        return self.latent_channels * self.patch_size**2


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
        moved = (getattr(self, name).to(device, non_blocking=True) for name in ("order", "drop_label", "uniform", "noise"))
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
