"""Models that draw token by token in raster order: what a place sees, what a token costs, and what a prior is for.

    python -m benchmarks.raster fields --to docs/receptive-fields.png
    python -m benchmarks.raster cost
    python -m benchmarks.raster priors --model FOLDER --latents STORE --tokenizer FOLDER --to docs/priors.png

`fields` draws receptive fields from gradients, of a plain stack of masked convolutions and of the gated one. `cost`
prints, as Markdown, what a token costs when drawn, and the longest chain of layers that wait for each other in
training. `priors` decodes codes drawn uniformly, from their frequencies, and from a trained model, such as that of
`mar train emoji-32-vq-pixelcnn`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.machine import conditions
from infra.console import say
from infra.errors import InputError
from infra.seeding import stream
from train.models.build import build_model
from train.models.config import Architecture, Model
from train.models.heads import CategoricalHead
from train.models.pixelcnn import GatedLayer, Stacks
from train.models.tokens import CodeTokens
from train.models.trunks import ConvolutionalTrunk, RecurrentTrunk, Trunk

SIDE, PLACE, DEPTHS, WIDTH = 15, (10, 6), (1, 2, 4, 9), 4
SEEN, BLIND, ITSELF, LATER = (70, 130, 180), (240, 150, 60), (20, 20, 20), (225, 225, 225)
_CELL, _GAP = 9, 12
_GIVEN = {"model": "a model's directory", "latents": "the store that it learned", "tokenizer": "its fitted tokenizer"}


class MaskedConvolution(nn.Conv2d):
    """The first PixelCNN's layer: a kernel without what comes later in raster order; A also without its centre."""

    def __init__(self, width: int, kernel: int, *, first: bool) -> None:
        super().__init__(width, width, kernel, padding=kernel // 2)
        before = torch.arange(kernel**2).view(kernel, kernel) < kernel**2 // 2 + (not first)
        self.register_buffer("mask", before.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to as much."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def plain(depth: int, kernel: int = 3) -> Callable[[Tensor], Tensor]:
    """Return a plain stack: A, then B."""
    torch.manual_seed(0)
    return nn.Sequential(*(MaskedConvolution(WIDTH, kernel, first=layer == 0) for layer in range(depth))).double()


def gated(depth: int, kernel: int = 3) -> Callable[[Tensor], Tensor]:
    """Return what the last layer of a gated PixelCNN's two stacks finds."""
    torch.manual_seed(0)
    layers = nn.ModuleList(GatedLayer(WIDTH, kernel, first=i == 0, last=i == depth - 1) for i in range(depth)).double()

    def found(x: Tensor) -> Tensor:
        stacks = Stacks(x, x, torch.zeros_like(x))
        for layer in layers:
            stacks = layer(stacks._replace(skip=torch.zeros_like(x)), x.new_zeros(1, WIDTH))
        return stacks.skip

    return found


def field(stack: Callable[[Tensor], Tensor], side: int, place: tuple[int, int]) -> Tensor:
    """Return which inputs (side, side) the output at a place depends on: those whose gradient is not zero."""
    torch.manual_seed(1)
    x = torch.randn(1, WIDTH, side, side, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x)[0, :, place[0], place[1]].sum(), x)
    return gradient[0].abs().sum(0) != 0


def fields_picture() -> Image.Image:
    """Return receptive fields by depth, from left to right: above of the plain stack, below of the gated one."""
    place = PLACE[0] * SIDE + PLACE[1]
    earlier = (torch.arange(SIDE**2) < place).view(SIDE, SIDE)
    rows = []
    for stack in (plain, gated):
        panels = []
        for depth in DEPTHS:
            seen = field(stack(depth), SIDE, PLACE)
            colours = np.where(seen[..., None], SEEN, np.where(earlier[..., None], BLIND, LATER)).astype(np.uint8)
            colours[PLACE] = ITSELF
            panels.append(_framed(colours.repeat(_CELL, 0).repeat(_CELL, 1)))
        rows.append(np.concatenate(panels, 1))
    return Image.fromarray(np.concatenate(rows, 0))


def _framed(panel: np.ndarray) -> np.ndarray:
    panel[::_CELL] = panel[:, ::_CELL] = 255
    return np.pad(panel, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


def model_of(trunk: Trunk, side: int) -> Model:
    """Return a model of codes of a square grid."""
    tokens = CodeTokens(codebook_size=256)
    return Architecture(trunk=trunk, head=CategoricalHead()).on(
        latent_size=side, latent_channels=1, num_classes=2, tokens=tokens
    )


@torch.no_grad()
def cost(trunk: Trunk, side: int, batch: int = 4) -> tuple[float, float]:
    """Return milliseconds of a token that is drawn, and of one in a pass over all, of a batch; the fastest of three."""
    config, tokens = model_of(trunk, side), side**2
    model, codes = build_model(config).eval(), torch.zeros(batch, tokens, 1)
    vectors, order = model.class_vectors(None, batch), torch.arange(tokens).expand(batch, -1)

    def drawn() -> None:
        state = model.begin(vectors, order)
        for start in range(tokens):
            model.conditions(state, codes, start, start + 1)

    fastest = [
        min(map(_seconds, [call] * 3)) for call in (drawn, lambda: model.training_conditions(codes, vectors, order, 0))
    ]
    return 1000 * fastest[0] / tokens, 1000 * fastest[1] / tokens


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def costs() -> None:
    """Print what a token costs on grids of two sizes, and how long the chain is that training must wait for."""
    say(f"{conditions()}\n")
    say("| trunk, 4 images | ms a token drawn, 8 x 8 | 16 x 16 | in one pass over all | longest chain of a pass |")
    say("|---|---|---|---|---|")
    depth = 8
    trunks: list[tuple[Trunk, str]] = [
        (ConvolutionalTrunk(width=64, depth=depth), "depth = {depth}"),
        (ConvolutionalTrunk(width=64, depth=2 * depth), "depth = {depth}"),
        (RecurrentTrunk(width=256, depth=1), "depth + tokens - 1 = {chain}"),
        (RecurrentTrunk(width=256, depth=2), "depth + tokens - 1 = {chain}"),
    ]
    for trunk, chain in trunks:
        (small, _), (large, together) = cost(trunk, 8), cost(trunk, 16)
        name = f"{trunk.kind}, width {trunk.width}, depth {trunk.depth}"
        told = chain.format(depth=trunk.depth, chain=trunk.depth + 16**2 - 1)
        say(f"| {name} | {small:.2f} | {large:.2f} | {together:.3f} | {told} |")


def priors_picture(model: Path, latents: Path, tokenizer: Path, columns: int = 8, rows: int = 2) -> Image.Image:
    """Return pictures of codes drawn uniformly, from the frequencies of all codes, and from the trained model."""
    from evaluate.config import Sampling
    from evaluate.sampling.generate import Generator
    from tokenize_jobs import tokenizers
    from tokenize_jobs.store.reader import LatentStore
    from tokenize_jobs.tokens import Codes
    from train.card import read_card

    card, store = read_card(model), LatentStore(str(latents))
    if not isinstance(store.kind, Codes):
        raise InputError(f"--latents {latents}: holds {store.kind.told()}; a prior is of codes of one codebook")
    codes = store.stored(np.arange(len(store)), np.zeros(len(store), int))
    counts = np.bincount(codes.ravel(), minlength=store.kind.codebook_size)
    generator = Generator(str(model), tokenizers.find(card.tokenizer_kind, str(tokenizer)))
    count, shape = columns * rows, card.model.latent_shape
    random = stream("priors")
    drawn = [random.choice(len(counts), (count, *shape), p=of / of.sum()) for of in (np.ones(len(counts)), counts)]
    pictures = [generator.decode(torch.from_numpy(codes).float()) for codes in drawn]
    settings = Sampling(ar_steps=card.model.num_tokens, order="raster")
    pictures.append(generator.draw(generator.labels(range(count)), range(count), 0, settings))
    blocks = [np.concatenate([np.concatenate(list(of[row::rows]), 1) for row in range(rows)], 0) for of in pictures]
    zoomed = [np.pad(of.repeat(2, 0).repeat(2, 1), ((0, _GAP), (0, 0), (0, 0)), constant_values=255) for of in blocks]
    return Image.fromarray(np.concatenate(zoomed, 0)[:-_GAP])


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fields", "cost", "priors"))
    for name, what in _GIVEN.items():
        parser.add_argument(f"--{name}", type=Path, help=f"of priors: {what}")
    parser.add_argument("--to", type=Path, help="PNG to write")
    words = parser.parse_args()
    if words.what == "cost":
        costs()
        return
    given = [getattr(words, name) for name in _GIVEN] if words.what == "priors" else []
    if None in (words.to, *given):
        parser.error("a picture needs --to FILE, and priors --" + " --".join(_GIVEN))
    picture = priors_picture(*given) if given else fields_picture()
    picture.save(words.to, optimize=True)
    say(f"{words.to}: {picture.width} x {picture.height} pixels, {words.to.stat().st_size} bytes")


if __name__ == "__main__":
    main()
