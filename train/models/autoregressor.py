"""What masked and causal autoregressive models share: inputs, class conditioning, positions and the loss head.

A model turns the tokens known so far into the condition of each token to predict; the head draws the
token from it. `order` (B, L) is the generation order: the positions, the first generated first.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train.models.config import Model
from train.models.transformer import Block, init_linear_xavier


class Autoregressor(nn.Module):
    """Base of the trunks, which differ in how conditions are computed."""

    not_decayed: ClassVar[tuple[str, ...]] = ()
    """Ends of names of parameters that weight decay leaves alone, besides vectors, biases and the head."""
    compiles: ClassVar[bool] = True
    """The trunk is made faster by compiling; one that is a kernel of its own for all tokens is not."""

    def __init__(self, config: Model, width: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.class_emb = nn.Embedding(config.num_classes, width)
        self.z_proj = config.tokens.embedding(config.token_channels, width)
        self.head = config.head.build(config.tokens.size(config.token_channels), condition_width)

    @property
    def of_tokenizer(self) -> Mapping[str, nn.Module]:
        """Parts that are the tokenizer's own, by their names there: nothing trains them."""
        return {}

    def class_vectors(self, labels: Tensor | None, batch: int, drop_label: Tensor | None = None) -> Tensor:
        """Return (B, D): the class embedding, or the null vector where dropped or without labels."""
        null = self.fake_latent.expand(batch, -1)
        if labels is None:
            return null
        vectors = self.class_emb(labels)
        return vectors if drop_label is None else torch.where(drop_label[:, None], null, vectors)

    def forward(self, tokens: Tensor, labels: Tensor, drop_label: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Return the conditions (B, L - num_visible, D) of a training step, by position.

        The tokens (B, L, C) after the first `num_visible` of the order (B, L) are predicted from those before them
        and from labels (B,), or no class where `drop_label` (B,).
        """
        class_vectors = self.class_vectors(labels, len(tokens), drop_label)
        return self.training_conditions(tokens, class_vectors, order, num_visible)

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


def stacked(model: Autoregressor) -> list[nn.Module]:
    """Return the blocks of a model: what its stacks hold, but for those that are the tokenizer's own."""
    frozen = {module for part in model.of_tokenizer.values() for module in part.modules()}
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and part not in frozen]
    return [block for stack in stacks for block in stack]


def compile_training(model: Autoregressor, *, cut: bool = False, **options: Any) -> None:  # noqa: ANN401
    """Compile what a training step calls, each to one graph: the trunk, and the head's loss; options are torch's own.

    The number of visible tokens becomes a symbol of the graph: it is drawn anew in each step. Among workers that have
    copies (DDP), torch cuts the graphs where gradients are exchanged; of a model that is `cut` each block is a graph,
    since its weights are gathered before it.
    """
    options = {"fullgraph": True, **options}
    if cut:
        for block in stacked(model) if model.compiles else ():
            block.forward = torch.compile(block.forward, **options)
        return
    if model.compiles:
        model.compile(**options)
    model.head.loss = torch.compile(model.head.loss, **options)


class GridAutoregressor(Autoregressor):
    """Base of the trunks on one grid: tokens are read through a norm, and each condition is told its position."""

    def __init__(self, config: Model, width: int, condition_width: int) -> None:
        super().__init__(config, width, condition_width)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, condition_width))
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)

    def blocks(self, width: int, heads: int, depth: int) -> nn.ModuleList:
        """Return a stack of transformer blocks."""
        trunk = self.config.trunk
        return nn.ModuleList(Block(width, heads, trunk.mlp_ratio, trunk.dropout) for _ in range(depth))

    def initialise(self) -> None:
        """Initialise all but the head as the published implementation does (the head did it itself)."""
        for module in self.children():
            if module is not self.head:
                init_linear_xavier(module)
        for parameter in (*(p for _, p in self.named_parameters(recurse=False)), self.class_emb.weight):
            nn.init.normal_(parameter, std=0.02)
