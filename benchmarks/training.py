"""Rows of training itself, as `mar train` runs it on one GPU: images a second, MFU, memory beside the counted.

And what takes the time of its steps, kernel by kernel.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

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

_WARM, _STEPS, _PROFILED, _MOST_LINES = 4, 12, 3, 15
_GIB = 1 << 30


@dataclass(frozen=True)
class Training:
    """A model and a micro-batch, with the published dropout, at as many masked tokens as each step draws."""

    model: str
    images: int
    deterministic: bool = False
    """Additions in a fixed order: the same bytes on a GPU too, at the cost that the row tells."""

    def title(self) -> str:
        """Name what is measured."""
        return f"{self.model}, training compiled{', deterministic' * self.deterministic}, micro-batch {self.images}"


_SIZES = [Training(model, images) for images in (64, 128, 256) for model in ("MAR-L", "MAR-B", "MAR-H")]
ON_GPU = [*_SIZES[:3], Training("MAR-L", 64, deterministic=True), *_SIZES[3:]]
ON_CPU = [Training("small", 8), Training("small", 8, deterministic=True)]


def _step(case: Training, device: torch.device) -> tuple[Model, Train, Callable[[StepInput], object]]:
    """Return model, training and step of a case, compiled and in bf16 on a GPU."""
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
    return shape, config, lambda inputs: training_step(model, model, ema, optimization, [inputs])


def row(case: Training, device: torch.device) -> str:
    """Measure a training of some steps and return its line of the table."""
    (shape, config, step), gpu = _step(case, device), device.type == "cuda"
    steps = [_inputs(shape, case.images, number).to(device) for number in range(_WARM + _STEPS if gpu else 2)]
    began = time.monotonic()
    with _in_fixed_order(enabled=case.deterministic):
        times = [_seconds(lambda each=each: step(each)) for each in steps]
    warm = _WARM if gpu else 1
    rate, work = case.images / statistics.mean(times[warm:]), operations(shape)
    memory = _memory(shape, config, case.images) if gpu else "-"
    mfu = rate * work / device_rate(device, config.precision)
    return (
        f"| {case.title()} | {config.precision} | - | {work * case.images / 1e12:.3f} | {rate:.3g} | {memory} "
        f"| MFU {mfu:.0%}, compiled in {sum(times[:warm]):.0f} of {time.monotonic() - began:.0f} s | - |"
    )


def profiled(case: Training, device: torch.device) -> str:
    """Return a list of the kernels (on a processor: operators) that take most of the time of a training's steps."""
    (shape, _, step), gpu = _step(case, device), device.type == "cuda"
    inputs = [_inputs(shape, case.images, number).to(device) for number in range(_WARM + _PROFILED if gpu else 2)]
    warm = inputs[: -_PROFILED if gpu else 1]
    for each in warm:
        step(each)
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        took = _seconds(lambda: [step(each) for each in inputs[len(warm) :]])
    there = [(each.self_device_time_total if gpu else each.self_cpu_time_total, each) for each in found.key_averages()
             if (each.device_type == DeviceType.CUDA) == gpu]  # fmt: skip
    busy, count = sum(time for time, _ in there), len(inputs) - len(warm)
    lines = [
        f"- {time / busy:.1%}, {each.count / count:.0f} a step: {each.key[:90]}"
        for time, each in sorted(there, key=lambda pair: -pair[0])[:_MOST_LINES]
    ]
    told = f"{case.title()}: {took / count:.3f} s a step, the device busy {busy / 1e6 / took:.0%} of it"
    return "\n".join([told, "", *lines])


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, the first one's compiling among them: nothing is run before it."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextmanager
def _in_fixed_order(*, enabled: bool) -> Iterator[None]:
    """Have torch take kernels that add in a fixed order, and refuse what has none."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which torch refuses every product
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


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
