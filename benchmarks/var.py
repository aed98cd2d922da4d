"""VAR against its published code, given by path: the same weights and outputs, then the ratio of times.

    python -m benchmarks.var --published DIR [--depth 16]

DIR is a checkout of github.com/FoundationVision/VAR. Its code is run as it is, and needs `huggingface_hub`; without
flash-attn and xformers it takes torch's attention, as ours does. Weights are random, of the published size, in float32;
neither drops paths or labels, so that both compute the same. Prints Markdown; depth 16 takes some 20 minutes on two
cores.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import conditions, flops, interleaved, ratio
from evaluate.config import Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.console import say
from infra.errors import InputError
from tokenize_jobs.quantization.scales import split
from tokenize_jobs.tokenizers.var import VAR16_CHANNELS, VAR16_CODES, VARTokenizer, filled
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES
from train.models.build import build_model
from train.models.categorical import chosen, filtered
from train.models.published import from_published, recognise, to_published
from train.models.var import VAR

BATCH, ROUNDS, SIDES, TOKENIZER_WIDTH = 2, 5, PUBLISHED_SCALES[0], 160
CFG, TOP_K, TOP_P = 1.5, 900, 0.96
"""The published settings of its numbers; guidance of 1.5 there is a scale of 2.5 here."""
HEADER = (
    "| VAR-d{depth}, {parameters:.0f} M, batch {batch} | published / ours, time | published, ours "
    "| TFLOP, published and ours | difference |\n|---|---|---|---|---|"
)
_NEEDED = ("dist.py", "models/__init__.py", "models/var.py", "models/vqvae.py")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Both:
    """The published model and ours, with the same weights, each with its tokenizer."""

    theirs: Any
    their_tokenizer: Any
    ours: VAR
    our_tokenizer: VARTokenizer


def published_code(folder: Path) -> ModuleType:
    """Return the published package `models`. Raises InputError where it or an import of it is not there."""
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"--published {folder}: has no {missing[0]}; give a checkout of github.com/FoundationVision/VAR"
        )
    sys.path.insert(0, str(folder.resolve()))
    try:
        return import_module("models")
    except ModuleNotFoundError as error:
        raise InputError(f"--published {folder}: its code imports {error.name}, which is not installed") from None


def same_models(code: ModuleType, depth: int) -> Both:
    """Return both with weights that the published code draws, but gates and head open: else outputs tell nothing."""
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        tokenizer = code.VQVAE(vocab_size=VAR16_CODES, z_channels=VAR16_CHANNELS, ch=TOKENIZER_WIDTH).to(DEVICE)
        theirs = code.VAR(
            tokenizer, depth=depth, embed_dim=64 * depth, num_heads=depth, cond_drop_rate=0.0, attn_l2_norm=True
        ).to(DEVICE)
        theirs.init_weights(init_adaln=0.5, init_adaln_gamma=0.5, init_head=1.0, init_std=-1)
    our_tokenizer = filled(
        VARTokenizer(TOKENIZER_WIDTH, VAR16_CHANNELS, VAR16_CODES), tokenizer.state_dict(), "published"
    ).to(DEVICE)
    found = recognise(theirs.state_dict())
    trunk = replace(found.trunk, drop_path=0.0)  # pyrefly: ignore  it is a next-scale trunk
    ours = build_model(replace(found, trunk=trunk)).to(DEVICE)
    scales = {f"z_proj.scales.{name}": of for name, of in our_tokenizer.scales.state_dict().items()}
    ours.load_state_dict(from_published(theirs.state_dict()) | scales)
    return Both(theirs, tokenizer, ours, our_tokenizer)


def training_pair(both: Both) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return one forward and backward pass of each, from codes to the loss."""
    generator, length = torch.Generator().manual_seed(0), sum(side**2 for side in SIDES)
    codes = torch.randint(VAR16_CODES, (BATCH, length), generator=generator).to(DEVICE)
    labels = torch.arange(BATCH, device=DEVICE)
    order, kept = torch.arange(length, device=DEVICE).expand(BATCH, -1), torch.zeros_like(labels, dtype=torch.bool)

    def theirs() -> Tensor:
        both.theirs.train().zero_grad()
        parts = [part.flatten(1) for part in split(codes, SIDES)]
        logits = both.theirs(labels, both.their_tokenizer.quantize.idxBl_to_var_input(parts))
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        loss.backward()
        return loss.detach()

    def ours() -> Tensor:
        both.ours.train().zero_grad()
        tokens = codes[..., None].float()
        loss = both.ours.head.loss(tokens, both.ours(tokens, labels, kept, order, 0), {}).loss
        loss.backward()
        return loss.detach()

    return theirs, ours


def gradients_difference(both: Both) -> float:
    """Return the largest difference of a gradient, of the largest value of the parameter's."""
    ours = {name: of.grad for name, of in both.ours.named_parameters() if of.grad is not None}
    ours, found = to_published(ours, both.ours.config), []
    for name, parameter in both.theirs.named_parameters():
        found.append(difference(ours[name], parameter.grad))
    return max(found)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def sampling_pair(both: Both) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return calls that draw images (B, 3, 256, 256) in [0, 1], with guidance, decoded."""
    labels = torch.arange(BATCH, device=DEVICE)
    settings = Sampling(
        ar_steps=len(SIDES), order="raster", cfg_scale=1 + CFG, cfg_schedule="steps", top_k=TOP_K, top_p=TOP_P
    )

    def theirs() -> Tensor:
        return both.theirs.eval().autoregressive_infer_cfg(BATCH, labels, 0, CFG, TOP_K, TOP_P)

    def ours() -> Tensor:
        codes = sample(both.ours.eval(), labels, ImageNoise(0, range(BATCH)), settings)
        return (both.our_tokenizer.decode(codes) + 1) / 2

    return theirs, ours


def with_our_numbers() -> Any:  # noqa: ANN401  a patch
    """Have the published sampler draw with the numbers that ours draws with: its own come from torch's generator."""
    noise = ImageNoise(0, range(BATCH))
    noise.order(sum(side**2 for side in SIDES))

    def drawn(logits: Tensor, top_k: int, top_p: float, **_: object) -> Tensor:
        normal = noise.normal(1, logits.shape[1], 1)[0, ..., 0].to(logits.device)
        return chosen(filtered(logits, top_k, top_p), torch.special.ndtr(normal.double()))[..., None]

    return mock.patch.object(sys.modules["models.var"], "sample_with_top_k_top_p_", drawn)


def row(what: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor], told: str) -> str:
    """Measure both in turns and return the line of the table."""
    times = interleaved({"theirs": theirs, "ours": ours}, ROUNDS)
    seconds = ", ".join(f"{statistics.median(times[name]):.3g} s" for name in ("theirs", "ours"))
    counted = ", ".join(f"{flops(work) / 1e12:.4g}" for work in (theirs, ours))
    return f"| {what} | {ratio(times['theirs'], times['ours']):.2f}x | {seconds} | {counted} | {told} |"


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where the published code is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="checkout of github.com/FoundationVision/VAR")
    parser.add_argument("--depth", type=int, default=16, help="blocks; the width is 64 times as many")
    asked = parser.parse_args(words)
    warnings.simplefilter("ignore", FutureWarning)  # of the published code's ways to use autocast
    try:
        both = same_models(published_code(asked.published), asked.depth)
    except InputError as error:
        say(str(error))
        return 1
    parameters = sum(of.numel() for of in both.theirs.parameters()) / 1e6
    say(f"{conditions()}\n\n{HEADER.format(depth=asked.depth, parameters=parameters, batch=BATCH)}")
    theirs, ours = training_pair(both)
    losses = [loss.item() for loss in (theirs(), ours())]
    told = f"loss {losses[0]:.5f}, {losses[1]:.5f}; gradients {gradients_difference(both):.0e}"
    say(row("forward and backward", theirs, ours, told))
    for model in (both.theirs, both.ours):
        model.zero_grad()
    theirs, ours = sampling_pair(both)
    with with_our_numbers():
        expected = theirs()
    say(row(f"sampling, guidance {CFG:g}, decoded", theirs, ours, f"images {difference(ours(), expected):.0e}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
