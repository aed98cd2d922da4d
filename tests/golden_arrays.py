"""Arrays computed by the published MAR implementation, and weights made by the formula they were computed with."""

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from train.models.config import Model
from train.models.published import recognise

TOLERANCE = 2e-5
"""Of the array's largest value: float32 on another processor, with sums in another order."""

SAMPLED_TOLERANCE = 5e-4
"""Of the largest value of a sampled latent, while the median error keeps to TOLERANCE. At t = 999 one rounding
of the network's output is amplified 20,000 times, and later steps see the result: the same draws in float64
arithmetic are 5e-5 away from the recorded float32 arrays, and processors differ by up to 1.2e-4 from them."""


@dataclass(frozen=True)
class Golden:
    arrays: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def published_state(self) -> dict[str, Tensor]:
        return {name.removeprefix("state."): t for name, t in self.arrays.items() if name.startswith("state.")}

    def model(self) -> Model:
        """The shape of the recorded model, with dropout and label drop off as in the recording."""
        config = self.meta["config"]
        found = recognise(self.published_state, config["patch_size"], config["encoder_num_heads"])
        trunk = replace(found.trunk, dropout=0.0)
        return replace(found, trunk=trunk, head=replace(found.head, batch_mul=config["diffusion_batch_mul"]))


def load(name: str) -> Golden:
    with safe_open(Path(__file__).parent / "golden" / f"{name}.safetensors", "pt") as file:
        return Golden({key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["meta"]))  # noqa: SIM118


def assert_reproduced(ours: Tensor, recorded: Tensor) -> None:
    scale = max(recorded.abs().max().item(), 1e-12)
    assert ours.shape == recorded.shape
    assert ((ours - recorded).abs().max().item() / scale) < TOLERANCE


def assert_sampled(ours: Tensor, recorded: Tensor) -> None:
    scale, error = recorded.abs().max().item(), ours - recorded
    assert error.abs().max().item() / scale < SAMPLED_TOLERANCE
    assert error.abs().median().item() / scale < TOLERANCE


def formula_weight(name: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    drawn = np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(shape)
    if len(shape) > 1:
        drawn = drawn * 0.9 / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(".weight"):
        drawn = 1 + 0.1 * drawn
    else:
        drawn = 0.05 * drawn
    return torch.from_numpy(drawn.astype(np.float32))
