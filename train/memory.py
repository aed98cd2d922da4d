"""What a training step holds in a GPU's memory, counted where there is none: shapes are followed, nothing is computed.

Counted are weights, gradients, moments and averages, and what lives at the end of the forward pass; not what the
backward pass needs besides, nor what the allocator loses between tensors: a device needs some room more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from infra.errors import InputError
from train.batches import StepInput, TrainingDraws
from train.config import Train
from train.heldout_loss import loss_of
from train.models.autoregressor import Autoregressor, stacked
from train.models.build import build_model
from train.models.config import Model

if TYPE_CHECKING:  # counting needs torch alone
    from infra.cluster import Workers

GIB = 1 << 30
ROOM = 0.85
"""Share of a device that what is counted may take where it can be lessened."""
_MOST = 0.92
"""And where it cannot: the rest is what the backward pass and the allocator take besides."""
_BYTES_A_WEIGHT = 20  # float32: itself, its gradient, two moments, its average
_GPU = torch.device("cuda")


class Memory(NamedTuple):
    """Bytes of a worker."""

    weights: int
    """With gradients, moments and averages."""
    activations: int
    """Alive when a micro-batch's backward pass begins, with the weights as autocast copies them."""

    @property
    def gib(self) -> float:
        """All of it."""
        return sum(self) / GIB

    def __str__(self) -> str:
        """Return both parts."""
        return f"{self.weights / GIB:.1f} GiB of weights and moments, {self.activations / GIB:.1f} of activations"


def counted(model: Model, config: Train, images: int, *, recomputing: bool, parts: int = 1) -> Memory:
    """Return what a worker holds with micro-batches of so many images, in the step that predicts all tokens.

    Its share of the weights is one of `parts`.
    """
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(model).parameters())
    activations = activation_bytes(model, images, model.num_tokens, config.precision, recomputing=recomputing)
    return Memory(parameters * _BYTES_A_WEIGHT // parts, activations)


def recomputes(config: Train, model: Model, workers: int, device_bytes: int | None, *, cut: bool = False) -> bool:
    """Tell whether blocks are computed again in the backward pass: as asked for, else where the device is too small.

    `device_bytes` are None where they are not known; `cut` tells that the workers share the weights. Raises InputError
    with the numbers where it does not fit.
    """
    asked, parts = config.activation_checkpointing, workers if cut else 1
    if device_bytes is None:
        return asked == "on"
    images = config.images_at_once(workers)
    whole = counted(model, config, images, recomputing=asked == "on", parts=parts)
    if asked != "auto" or sum(whole) <= ROOM * device_bytes:
        _require(whole, images, device_bytes)
        return asked == "on"
    _require(counted(model, config, images, recomputing=True, parts=parts), images, device_bytes)
    return True


def device_bytes(workers: "Workers") -> int | None:
    """Return the memory of a worker's GPU, which one such process of the connected cluster tells; None without GPUs."""
    if not workers.gpus:
        return None
    import ray

    def told() -> int | None:
        share = min(workers.gpus, 1)  # several may lie on one
        return int(torch.cuda.get_device_properties(0).total_memory * share) if torch.cuda.is_available() else None

    return ray.get(ray.remote(num_cpus=1, num_gpus=workers.gpus)(told).remote())


def _require(memory: Memory, images: int, device_bytes: int) -> None:
    if sum(memory) > _MOST * device_bytes:
        raise InputError(
            f"a device has {device_bytes / GIB:.1f} GiB, a training step of {images} images at once holds "
            f"{memory.gib:.1f}, more than {_MOST:.0%} of it: {memory}. Give a smaller --train.micro-batch, more "
            "--compute.train.workers, --compute.train.sharded, or --train.activation-checkpointing on."
        )


def recompute_blocks(model: Autoregressor) -> None:
    """Keep of each block of the model only what goes in: its backward pass computes it again, with the same dropout."""
    for block in stacked(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@lru_cache
def activation_bytes(model: Model, images: int, predicted: int, precision: str, *, recomputing: bool) -> int:
    """Return the bytes that a forward pass and its loss leave on a GPU for the backward pass."""
    with fake_step(model, images, predicted, precision, recomputing=recomputing) as (network, inputs):
        with _Alive() as alive:
            found = loss_of(network, inputs)
        held = alive.bytes()
        del found  # it held the graph until here
    return held


@contextmanager
def fake_step(
    model: Model, images: int, predicted: int, precision: str, *, recomputing: bool
) -> Iterator[tuple[Autoregressor, StepInput]]:
    """Give a model and what a step takes, on a GPU that need not be there: operators follow shapes alone."""
    with torch.device("meta"):
        network = build_model(model).train()
    if recomputing:
        recompute_blocks(network)
    # cuDNN, asked whether it takes an LSTM, looks for the GPU
    with FakeTensorMode(allow_non_fake_inputs=True), torch.backends.cudnn.flags(enabled=False):
        network.to_empty(device=_GPU)
        inputs = _inputs(model, images, predicted)
        with _autocast(enabled=precision == "bf16"), _FusedAttention():
            yield network, inputs


def _inputs(model: Model, images: int, predicted: int) -> StepInput:
    length, drawn = model.num_tokens, model.head.training_draws(predicted, model.token_channels)
    with _GPU:
        draws = TrainingDraws(
            order=torch.empty(images, length, dtype=torch.long),
            num_visible=length - predicted,
            drop_label=torch.empty(images, dtype=torch.bool),
            head={name: torch.empty((*shape[:1], images, *shape[1:])) for name, (_, shape) in drawn.items()},
        )
        return StepInput(
            torch.empty(images, length, model.token_channels), torch.empty(images, dtype=torch.long), draws
        )


@contextmanager
def _autocast(*, enabled: bool) -> Iterator[None]:
    """torch.autocast refuses a GPU that is not there."""
    kind = _GPU.type
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, enabled)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


class _FusedAttention(TorchFunctionMode):
    """Takes the kernels that a GPU takes; fake tensors would take the one that keeps all attention weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, mask, dropout, causal = args
        how = {"dropout_p": dropout, "is_causal": causal, "scale": kwargs["scale"]}
        if mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, **how)[0]
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        bias = bias.expand(*query.shape[:2], -1, -1)
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, compute_log_sumexp=True, **how
        )[0]


class _Alive(TorchDispatchMode):
    """Knows the storages of all tensors that operators have made."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._made.setdefault(reference.cdata, (reference, storage.nbytes()))
        return found

    def bytes(self) -> int:
        """Return the bytes of those that live."""
        return sum(size for reference, size in self._made.values() if not reference.expired())
