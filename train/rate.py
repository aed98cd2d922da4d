"""How busy a device is: operations of a training step, counted, over what the device can do, known or measured."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.heldout_loss import loss_of
from train.memory import fake_step
from train.models.config import Model

_BACKWARD = 2  # a backward pass multiplies twice where the forward pass does once
_KNOWN = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense operations a second with half-precision inputs, as the maker states them, by a part of the device's name."""
_SIDE, _TIMES = {"cuda": 8192, "cpu": 768}, 5


def operations(model: Model) -> float:
    """Return the operations of a training step for each image: two for each multiplication, at the median mask."""
    predicted = model.trunk.predicted(0.5, model.num_tokens)
    with (
        fake_step(model, 1, predicted, "fp32", recomputing=False) as (network, inputs),
        FlopCounterMode(display=False) as counter,
    ):
        loss_of(network, inputs)
    return float(counter.get_total_flops() * (1 + _BACKWARD))


def device_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a device in this precision: as its maker states them in bf16, else measured."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        known = next((rate for part, rate in _KNOWN.items() if part in name.replace("-", " ").split()), None)
        if known is not None:
            return known
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _SIDE[device.type]
    factor = torch.ones(side, side, device=device, dtype=dtype)
    return max(2 * side**3 / _seconds(factor) for _ in range(_TIMES))


def _seconds(factor: torch.Tensor) -> float:
    """Return how long a product takes, read back so that the device is waited for."""
    began = time.perf_counter()
    (factor @ factor)[0, 0].item()
    return time.perf_counter() - began
