"""The GPU rows of the benchmark: one command of at most fifteen minutes, printing Markdown.

    python -m benchmarks.gpu

Needs Python, torch and numpy; a row that lacks a library is skipped by its name. Without a
GPU it says so and exits with 1; `--device cpu` runs the same code at a small size, to see that it works.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import models, training
from benchmarks.machine import conditions, flops, interleaved, ratio, square_products
from evaluate.config import DiffusionSteps
from infra.console import say

SECONDS = 780.0  # none is begun after; compiling takes the longest
FEW = DiffusionSteps(first=25, last=25)
_SIZES = ("MAR-B", "MAR-L")
ON_GPU = [  # what decides first
    models.Case("MAR-B", 1, 64, FEW, rounds=1),
    *(models.Case(model, 256, 64, FEW, rounds=2) for model in _SIZES),
    *(models.Case(model, 64, rounds=3) for model in _SIZES),
    *(models.Case(model, 256, 64, rounds=1) for model in _SIZES),
    *(models.Case(model, batch, 64, FEW, rounds=2) for model in _SIZES for batch in (32, 128)),
    *(models.Case(model, 256, rounds=3) for model in _SIZES),
]
ON_CPU = [models.Case("small", 8, rounds=1), models.Case("small", 2, 2, DiffusionSteps(first=5, last=5), rounds=1)]


def encoder_row(size: int, batch: int, rounds: int) -> str:
    """Measure KL-16's encoder, with random weights, on images of `size` pixels, and return its line of the table."""
    from tokenize_jobs.tokenizers.kl import new_kl16

    torch.manual_seed(0)
    network = new_kl16().to(models.DEVICE).eval()
    images = torch.randn(batch, 3, size, size, device=models.DEVICE)

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return network.encode(images).latent_dist.mean

    encode()
    product = square_products(torch.float32, models.DEVICE)
    times = interleaved({"encode": encode, "product": product}, rounds)
    seconds = sorted(times["encode"])[len(times["encode"]) // 2]
    operations, of_product = flops(encode), flops(product)
    share = operations / of_product * ratio(times["product"], times["encode"])
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if models.DEVICE.type == "cuda" else "-"
    return (
        f"| KL-16 encoder, {size} px, batch {batch} | fp32 | - | {operations / 1e12:.3f} | {batch / seconds:.3g} "
        f"| {memory} | {share:.0%} of the fp32 product's | - |"
    )


def rows(*, gpu: bool) -> list[tuple[str, Callable[[], str]]]:
    """Return what is measured: names, and what makes their lines."""
    precision = "bf16" if gpu else "fp32"
    cases = [(case.title(), lambda case=case: models.row(case, precision)) for case in (ON_GPU if gpu else ON_CPU)]
    size, batch, rounds = (256, 32, 3) if gpu else (32, 1, 1)
    trained = [
        (case.title(), lambda case=case: training.row(case, models.DEVICE))
        for case in (training.ON_GPU if gpu else training.ON_CPU)
    ]
    encoder = (f"KL-16 encoder, {size} px", lambda: encoder_row(size, batch, rounds))
    first = 4 if gpu else 2  # a training is compiled twice: the larger micro-batches wait
    return [*trained[:first], *cases[:5], encoder, *trained[first:], *cases[5:]]


def main() -> int:
    """Print the table; returns 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    gpu, start = parser.parse_args().device == "cuda", time.monotonic()
    if gpu and models.DEVICE.type != "cuda":
        say("no GPU: torch finds no CUDA device here, so there is nothing to measure")
        return 1
    say(f"{conditions()}\n\n{models.HEADER}")
    for name, measure in rows(gpu=gpu):
        if time.monotonic() - start > SECONDS:
            say(f"| {name} | skipped: the fifteen minutes are over |||||||")
            continue
        try:
            say(measure())
        except ImportError as error:
            say(f"| {name} | skipped: {error} |||||||")
        except torch.cuda.OutOfMemoryError:
            say(f"| {name} | skipped: does not fit this GPU's memory |||||||")
    case = (training.ON_GPU if gpu else training.ON_CPU)[0]
    say(f"\nWhere the time goes. {training.profiled(case, models.DEVICE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
