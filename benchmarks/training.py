"""Rows of training itself, as `mar train` runs it on one GPU: images a second, MFU, memory beside the counted."""

import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.machine import seconds
from benchmarks.models import IMAGENET_256
from train.batches import StepInput, training_draws
from train.config import Train
from train.ema import EMA
from train.models.autoregressor import compile_training
from train.models.build import build_model
from train.models.config import Model, mar_base, mar_huge, mar_large, tiny
from train.optimizer import Optimization
from train.rate import device_rate, operations
from train.step import training_step

_WARM, _STEPS = 4, 12
_GIB = 1 << 30


@dataclass(frozen=True)
class Training:
    """A model and a micro-batch, with the published dropout, at as many masked tokens as each step draws."""

    model: str
    images: int

    def title(self) -> str:
        """Name what is measured."""
        return f"{self.model}, training compiled, micro-batch {self.images}"


ON_GPU = [Training(model, images) for images in (64, 128, 256) for model in ("MAR-L", "MAR-B", "MAR-H")]
ON_CPU = [Training("small", 8)]


def row(case: Training, device: torch.device) -> str:
    """Measure a training of some steps, in bf16 and compiled on a GPU, and return its line of the table."""
    shape, gpu = _models()[case.model], device.type == "cuda"
    config = Train(batch_size=case.images, lr=1e-6, warmup_steps=0, precision="bf16" if gpu else "fp32")
    torch.manual_seed(0)
    torch.compiler.reset()
    model = build_model(shape).train().to(device)
    ema = EMA(model, config.ema_decay)
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        compile_training(model)
    optimization = Optimization(model, config)
    steps = [_inputs(shape, case.images, step).to(device) for step in range(_WARM + _STEPS if gpu else 2)]
    began = time.monotonic()
    times = [seconds(lambda each=each: training_step(model, model, ema, optimization, [each])) for each in steps]
    warm = _WARM if gpu else 1
    rate, work = case.images / statistics.mean(times[warm:]), operations(shape)
    memory = _memory(shape, config, case.images) if gpu else "-"
    mfu = rate * work / device_rate(device, config.precision)
    return (
        f"| {case.title()} | {config.precision} | - | {work * case.images / 1e12:.3f} | {rate:.3g} | {memory} "
        f"| MFU {mfu:.0%}, compiled in {sum(times[:warm]):.0f} of {time.monotonic() - began:.0f} s | - |"
    )


def _models() -> dict[str, Model]:
    published = {"MAR-B": mar_base(), "MAR-L": mar_large(), "MAR-H": mar_huge()}
    small = tiny().on(latent_size=8, latent_channels=4, num_classes=10)
    return {**{name: shape.on(**IMAGENET_256) for name, shape in published.items()}, "small": small}


def _inputs(shape: Model, images: int, step: int) -> StepInput:
    draws = training_draws(shape, 0, step, range(images))
    tokens, labels = torch.randn(images, shape.num_tokens, shape.token_channels), torch.arange(images)
    return StepInput(tokens, labels % shape.num_classes, draws, step)


def _memory(shape: Model, config: Train, images: int) -> str:
    """Return the most that was held, beside what `train/memory.py` counts for a step of as many images."""
    from train.memory import counted

    most = counted(shape, config, images, recomputing=False)
    return f"{torch.cuda.max_memory_allocated() / _GIB:.1f} GiB, counted {most.gib:.1f}"
