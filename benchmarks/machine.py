"""What a measurement stands on: the machine's name, its own matrix-product rate, and interleaved timing."""

import datetime as dt
import os
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode


def conditions() -> str:
    """Return one line naming machine, versions and date."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = f"{os.cpu_count()} cores of {named[0] if named else platform.processor()}"
    installed = {distribution.metadata["Name"] for distribution in distributions()}
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "ray", "pyarrow", "numpy") if name in installed
    )
    return f"{processor}; Python {platform.python_version()}, {versions}; {dt.date.today()}"


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds of one call, the mean of `repeats`; waits for the accelerator."""
    return Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(repeats).mean


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each in every round, in turns after one warm-up, so that all see the same machine."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median over the rounds of the ratio within a round: a machine that slows for a while moves both."""
    return statistics.median(first / second for first, second in zip(over, under, strict=True))


def square_products(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Return a call that multiplies large square matrices: its rate is the machine's own ceiling."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


def flops(work: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and attentions in one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def kernels(work: Callable[[], object]) -> int:
    """Return how many kernels a GPU runs in one call."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in found.events())
