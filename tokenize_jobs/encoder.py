"""Encoder: the Ray Data actor that turns decoded images into moments. A plain class; needs no Ray."""

import numpy as np
import torch

from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.pixels import from_uint8


class Encoder:
    """Holds one tokenizer on its device and encodes batches of one fixed size, the last one padded.

    A fixed batch shape keeps the bytes of the moments independent of how images were grouped.
    """

    def __init__(self, kind: str, path: str, batch_size: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load(kind, path).to(self.device)
        self.batch_size = batch_size

    def __call__(self, images: np.ndarray, *, flip: bool = False) -> np.ndarray:
        """Return moments float16 (N, 2C or C, h, w) of images uint8 (N, H, W, 3), mirrored if `flip`."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padded = np.zeros((self.batch_size, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch[:, :, ::-1] if flip else batch
            parts.append(self.tokenizer.encode(from_uint8(padded, self.device))[: len(batch)].half().cpu().numpy())
        return np.concatenate(parts)
