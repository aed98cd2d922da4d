"""Training step and sampling of ours against the plain transcription: same output, then the ratio of times.

    python -m benchmarks.models [--model small]

On a GPU it measures the published sizes' batches; on a processor what minutes allow. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from benchmarks.machine import conditions, flops, interleaved, kernels, ratio, square_products
from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.orders import reveal_counts
from evaluate.sampling.sampler import sample
from infra.console import say
from tests.references import transcription
from train.batches import StepInput, TrainingDraws, training_draws
from train.config import Train
from train.ema import EMA
from train.models.autoregressor import Autoregressor
from train.models.build import build_model
from train.models.config import Model, mar_base, mar_large, tiny
from train.models.patchify import patchify, unpatchify
from train.models.published import to_published
from train.optimizer import Optimization
from train.step import training_step

IMAGENET_256 = {"latent_size": 16, "latent_channels": 16, "num_classes": 1000}
HEADER = (
    "| case | precision | transcription / ours, time | TFLOP | images/s | memory | of the matmul rate "
    "| largest difference |\n|---|---|---|---|---|---|---|---|"
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    batch: int
    ar_steps: int = 0
    diffusion: DiffusionSteps = DiffusionSteps()  # noqa: RUF009  frozen
    cfg_scale: float = 3.0
    rounds: int = 5

    def title(self) -> str:
        """Name what is measured."""
        if not self.ar_steps:
            return f"{self.model}, training step, batch {self.batch}"
        steps = f"({self.ar_steps}, {self.diffusion.label()})"
        return f"{self.model}, sampling {steps} CFG {self.cfg_scale:g}, batch {self.batch}"


def models() -> dict[str, Model]:
    """Return the measured shapes; the transcription knows no dropout."""
    small = tiny().on(latent_size=8, latent_channels=4, num_classes=10)
    published = {"MAR-B": mar_base(), "MAR-L": mar_large()}
    plain = {
        name: replace(shape, trunk=replace(shape.trunk, dropout=0.0))  # pyrefly: ignore  they are masked trunks
        for name, shape in published.items()
    }
    return {**{name: shape.on(**IMAGENET_256) for name, shape in plain.items()}, "small": small}


def cases() -> list[Case]:
    """Return what this machine can measure in minutes."""
    if DEVICE.type == "cuda":
        training = [Case("MAR-B", batch) for batch in (64, 128, 256)]
        annealed = DiffusionSteps(first=50, last=5)
        settings = [(64, DiffusionSteps()), (64, DiffusionSteps(first=25, last=25)), (32, annealed)]
        sampling = [Case("MAR-B", batch, *setting) for batch in (1, 32, 256) for setting in settings]
        return [*training, Case("MAR-L", 64), *sampling, Case("MAR-L", 32, *settings[1])]
    few = DiffusionSteps(first=10, last=10)
    small = [Case("small", 64), Case("small", 1, 4, few), Case("small", 16, 4, few), Case("small", 256, 4, few)]
    return [*small, Case("MAR-B", 4), Case("MAR-B", 2, 4, few)]


def fresh_model(config: Model) -> Autoregressor:
    """Return a model whose head is not zero, so that outputs tell something."""
    torch.manual_seed(0)
    model = build_model(config).to(DEVICE)
    for parameter in (model.head.net.modulation.weight, model.head.net.final_linear.weight):
        nn.init.normal_(parameter, std=0.02)
    return model


class PlainStep:
    """The transcription's training step, as straightforward code has it."""

    def __init__(self, model: Autoregressor, config: Train) -> None:
        self.config, self.shape = config, model.config
        self.model = transcription.Plain(to_published(model.state_dict(), self.shape), self.shape).to(DEVICE)
        self.ema = [tensor.detach().clone() for tensor in self.model.tensors]
        self.adamw = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=(0.9, 0.95))

    def __call__(self, latents: Tensor, labels: Tensor, draws: TrainingDraws, *, bf16: bool) -> Tensor:
        shape, w = self.shape, self.model.weights()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            tokens = patchify(latents, shape.patch_size)
            mask = torch.ones(draws.order.shape, dtype=torch.bool, device=DEVICE)
            mask.scatter_(1, draws.order[:, : draws.num_visible], value=False)
            vectors = torch.where(draws.drop_label[:, None], w["fake_latent"], w["class_emb.weight"][labels])
            z = transcription.conditions(w, shape, tokens, vectors, mask)
            t, noise = self._everywhere(draws, mask)
            loss = transcription.diffusion_loss(w, shape, tokens, z, mask, t, noise)
        self.adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.adamw.step()
        for average, tensor in zip(self.ema, self.model.tensors, strict=True):
            average.mul_(self.config.ema_decay).add_(tensor.detach(), alpha=1 - self.config.ema_decay)
        return loss.detach()

    def _everywhere(self, draws: TrainingDraws, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Spread the masked rows' draws over all rows."""
        times, channels = len(draws.head["uniform"]), draws.head["noise"].shape[-1]
        t = torch.zeros(times, *mask.shape, dtype=torch.long, device=DEVICE)
        noise = torch.zeros(times, *mask.shape, channels, device=DEVICE)
        t[:, mask] = (draws.head["uniform"].flatten(1) * 1000).long()
        noise[:, mask] = draws.head["noise"].flatten(1, 2)
        return t, noise


def training_pair(case: Case, *, bf16: bool) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Autoregressor]:
    """Return our step and the transcription's on the same batch, and our model."""
    shape = models()[case.model]
    config = Train(batch_size=case.batch, lr=1e-6, warmup_steps=0, precision="bf16" if bf16 else "fp32")
    model = fresh_model(shape)
    plain = PlainStep(model, config)
    ema, optimization = EMA(model, config.ema_decay), Optimization(model, config)
    draws = training_draws(shape, 0, 0, range(case.batch)).each(lambda drawn: drawn.to(DEVICE))
    latents = torch.randn(case.batch, shape.latent_channels, shape.latent_size, shape.latent_size, device=DEVICE)
    labels = torch.arange(case.batch, device=DEVICE) % shape.num_classes

    inputs = StepInput(patchify(latents, shape.patch_size), labels, draws)

    def ours() -> Tensor:
        return training_step(model, model, ema, optimization, [inputs])["loss"]

    return ours, lambda: plain(latents, labels, draws, bf16=bf16), model


class GivenNoise:
    """The same draws for both samplers, already on the device."""

    def __init__(self, case: Case, shape: Model) -> None:
        generator = torch.Generator().manual_seed(0)
        self.orders = torch.stack([torch.randperm(shape.num_tokens, generator=generator) for _ in range(case.batch)])
        self.counts = reveal_counts("random", shape.num_tokens, case.ar_steps)
        steps = [case.diffusion.at(step, case.ar_steps) for step in range(case.ar_steps)]
        shapes = [(t, case.batch, n, shape.token_channels) for t, n in zip(steps, self.counts, strict=True)]
        self.draws = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
        self.next = 0

    def order(self, num_tokens: int) -> Tensor:  # noqa: ARG002
        """Return the orders, from the start again."""
        self.next = 0
        return self.orders

    def normal(self, draws: int, rows: int, channels: int) -> Tensor:  # noqa: ARG002
        """Return the draws of the next step."""
        self.next += 1
        return self.draws[self.next - 1]


def sampling_pair(case: Case, *, bf16: bool) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Autoregressor]:
    """Return our sampler and the transcription's with the same draws, and our model."""
    shape = models()[case.model]
    model = fresh_model(shape).eval()
    weights = {name: tensor.detach() for name, tensor in to_published(model.state_dict(), shape).items()}
    noise, labels = GivenNoise(case, shape), torch.arange(case.batch, device=DEVICE) % shape.num_classes
    settings = Sampling(
        ar_steps=case.ar_steps, diffusion_steps=case.diffusion, cfg_scale=case.cfg_scale,
        precision="bf16" if bf16 else "fp32",
    )  # fmt: skip
    order = noise.orders.to(DEVICE)
    flat = [draws.flatten(1, 2) for draws in noise.draws]

    def plain() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            tokens = transcription.sample(weights, shape, labels, order, noise.counts, flat, case.cfg_scale)
        return unpatchify(tokens, shape.patch_size, shape.grid)

    return lambda: sample(model, labels, noise, settings), plain, model


def noise_told(case: Case, seconds_of_sampling: float) -> str:
    """Return how long one core draws a batch's noise, which a thread does beside the sampling, as a share of that."""
    shape, noise = models()[case.model], ImageNoise(0, range(case.batch))
    counts = reveal_counts("random", shape.num_tokens, case.ar_steps)
    began = time.perf_counter()
    for step, count in enumerate(counts):
        noise.normal(case.diffusion.at(step, case.ar_steps), count, shape.token_channels)
    return f"; noise {(time.perf_counter() - began) / seconds_of_sampling:.0%} of it, beside it"


def kernels_told(case: Case, ours: Callable[[], Tensor]) -> str:
    """Return the kernels that a GPU runs for each denoising step, with all that the trunk needs."""
    if DEVICE.type != "cuda":
        return ""
    steps = sum(case.diffusion.at(step, case.ar_steps) for step in range(case.ar_steps))
    return f"; {kernels(ours) / steps:.0f} kernels a denoising step"


def row(case: Case, precision: str) -> str:
    """Measure one case, and a product of square matrices in turn with it, and return its line of the table."""
    pair = sampling_pair if case.ar_steps else training_pair
    ours, plain, model = pair(case, bf16=precision == "bf16")
    product = square_products(torch.bfloat16 if precision == "bf16" else torch.float32, DEVICE)
    work = {"ours": ours, "plain": plain, "product": product}
    operations = {name: flops(call) for name, call in work.items()}  # of graphs that are replayed nobody counts them
    if DEVICE.type == "cuda":
        if case.ar_steps:  # as `mar evaluate` does
            model.head.compile_sampling()
        torch.cuda.reset_peak_memory_stats()
    first = ours()
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if DEVICE.type == "cuda" else "-"
    second = plain()
    difference = ((first - second).abs().max() / second.abs().max()).item()
    times = interleaved(work, case.rounds)
    share = operations["ours"] / operations["product"] * ratio(times["product"], times["ours"])
    median, ceiling = statistics.median(times["ours"]), operations["product"] / statistics.median(times["product"])
    sampled = f"{noise_told(case, median)}{kernels_told(case, ours)}" if case.ar_steps else ""
    return (
        f"| {case.title()}{sampled} | {precision} | {ratio(times['plain'], times['ours']):.2f}x "
        f"| {operations['ours'] / 1e12:.3f}, transcription {operations['plain'] / 1e12:.3f} "
        f"| {case.batch / median:.3g} | {memory} | {share:.0%} of {ceiling / 1e9:.0f} GFLOP/s | {difference:.0e} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=models(), help="only this one")
    chosen = parser.parse_args().model
    say(f"{conditions()}\n")
    say(HEADER)
    for case in cases():
        if chosen not in (None, case.model):
            continue
        both = DEVICE.type == "cpu" and case.model == "small" and case.batch < 256
        for precision in ("fp32", "bf16") if both else ("bf16",) if DEVICE.type == "cuda" else ("fp32",):
            # a process of its own: memory that earlier cases used changes what a large one takes
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                say(fresh.submit(row, case, precision).result())


if __name__ == "__main__":
    main()
