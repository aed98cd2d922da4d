"""How a model lies on workers: a copy on each (DDP), or cut among them (FSDP2). Losses are the same, to rounding."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.models.autoregressor import Autoregressor, stacked


def spread(model: Autoregressor, averaged: Autoregressor, device: torch.device, world: int, *, cut: bool) -> nn.Module:
    """Lay a model and its averages on `world` workers, each of which has both; returns what a step calls forward.

    With `cut`, each worker keeps its part of every weight, and of what is made from it later: gradient, moments.
    """
    if world == 1:
        return model
    if cut:
        _cut(averaged, device, world)
        _cut(model, device, world)
        return model
    # the head is used outside of the wrapped forward: its hooks work there too, if no parameter is unused
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _cut(model: Autoregressor, device: torch.device, world: int) -> None:
    """Cut the weights: those of a block are whole on a worker only while the block is used."""
    from torch.distributed.device_mesh import init_device_mesh  # a second, which most trainings need not
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world,))
    for part in (*stacked(model), model.head, model):
        # the root too gives back what it gathered: averages have no backward pass after which it would
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model.head, "loss")


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this worker's parts of tensors that are cut, and the others as they are."""
    return [tensor.to_local() if is_cut(tensor) else tensor for tensor in tensors]  # pyrefly: ignore


def whole(number: Tensor) -> Tensor:
    """Return a number that each worker knows a part of, as all of them know it."""
    return number.full_tensor() if is_cut(number) else number  # pyrefly: ignore


def is_cut(tensor: Tensor) -> bool:
    """Tell whether it is a DTensor, whose type takes a second to import."""
    return hasattr(tensor, "to_local")
