"""Reads weight files without executing anything in them."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import InputError


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return what a .safetensors, .pth, .pt, .ckpt or .bin file holds: tensors, or a dict around them.

    A pickle that would run code is refused; the argparse.Namespace in files of the public training script
    is admitted as data. Raises InputError naming the file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file}: refused, for loading it would execute code or it is damaged ({reason[:160]})"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable file of weights ({str(error).splitlines()[0][:160]})") from None


def require_tensors(found: object, path: str | Path) -> dict[str, Tensor]:
    """Return `found` if it is a dict of tensors, else raise InputError."""
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path}: holds no plain table of tensors")
    return found
