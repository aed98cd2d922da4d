"""The denoising step as CUDA graphs: the host launches one graph where a small head is tens of kernels.

A graph keeps the addresses and the sizes of its tensors. So one is recorded for few numbers of rows, on tensors of
its own; tokens fill the first rows, and the others tell them nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from train.models.head import Guidance
from train.models.head_mlp import Modulations
from train.models.heads import HeadSampling

_APART = 16
_MOST_GRAPHS = 64  # a served model is asked for any temperature, and each is another graph


def padded(rows: int) -> int:
    """Return the number of rows, these or more, that is recorded: a multiple of 16, from 64 on one of four a doubling.

    From there on less than a fifth is wasted, and nothing of up to eight tokens of each image of a batch of 2^k.
    """
    apart = max(_APART, (1 << rows.bit_length()) >> 3)
    return -(-rows // apart) * apart


class RecordedStep:
    """A denoising step of so many rows on tensors of its own."""

    def __init__(
        self,
        denoise: Callable[..., tuple[Tensor, Tensor]],
        size: int,
        first: tuple[Tensor, Tensor, Tensor],
        guidance: Guidance,
        layers: Modulations,
        settings: HeadSampling,
    ) -> None:
        row, time, fresh = (torch.zeros_like(tensor) for tensor in first)
        self.size, self.row, self.time = size, row, time
        self.x, self.older, self.fresh = (fresh.new_zeros(size, fresh.shape[1]) for _ in range(3))
        halves = 1 if guidance.scale is None else 2
        self.conditions = guidance.rows.new_zeros(halves, size, guidance.rows.shape[1])
        self.scale = None if guidance.scale is None else torch.zeros_like(guidance.scale)
        inner = Guidance(self.conditions.flatten(0, 1), self.scale)

        def take() -> None:
            x, older = denoise(self.x, self.older, self.fresh, self.row, self.time, inner, layers, settings)
            self.x.copy_(x)
            self.older.copy_(older)

        self.take = record(take)

    def walk(self, noise: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]], guidance: Guidance) -> Tensor:
        """Take the steps from noise (N, C), and return the tokens (N, C)."""
        rows = len(noise)
        self.x.zero_()[:rows].copy_(noise)
        self.older.zero_()
        self.conditions[:, :rows].copy_(guidance.rows.view(len(self.conditions), rows, -1))
        if self.scale is not None and guidance.scale is not None:
            self.scale.copy_(guidance.scale)
        for row, time, fresh in steps:
            self.row.copy_(row)
            self.time.copy_(time)
            self.fresh[:rows].copy_(fresh)
            self.take()
        return self.x[:rows].clone()  # the next walk writes over it


class Replays:
    """The recorded steps of a head, whose weights stay what and where they are."""

    def __init__(self, denoise: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._denoise, self._lock = denoise, Lock()
        self._recorded: dict[tuple[object, ...], RecordedStep] = {}
        self._layers: dict[tuple[object, ...], Modulations] = {}

    @torch.no_grad()
    def walk(
        self,
        noise: Tensor,
        steps: Sequence[tuple[Tensor, Tensor, Tensor]],
        guidance: Guidance,
        layers: Modulations,
        settings: HeadSampling,
    ) -> Tensor:
        """Return the tokens (N, C) after steps, each (row, embedded time, fresh noise (N, C)), from noise (N, C)."""
        size, settings = padded(len(noise)), replace(settings, steps=1, max_timestep=None)  # a step knows neither
        precision = guidance.rows.dtype  # tells whether autocast is on
        key = size, precision, guidance.scale is None, settings
        with self._lock:  # threads share the tensors of a step
            recorded = self._recorded.pop(key, None)
            if recorded is None:
                layers = self._layers.setdefault((precision, len(layers)), layers)  # one copy for all graphs
                recorded = RecordedStep(self._denoise, size, steps[0], guidance, layers, settings)
            self._recorded[key] = recorded
            if len(self._recorded) > _MOST_GRAPHS:  # the device has just been waited for: the oldest runs no more
                del self._recorded[next(iter(self._recorded))]
            return recorded.walk(noise, steps, guidance)


_pool = lru_cache(torch.cuda.graph_pool_handle)
"""Memory of what lives within one replay, for all graphs: they run one after the other."""


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Return a call that replays what `work` does on the GPU, which runs once before: for what first use makes."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):  # another pins noise meanwhile
        work()
    return graph.replay
