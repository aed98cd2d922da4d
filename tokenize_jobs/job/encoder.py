"""What turns decoded images into tokens on the workers of the tokenization job. Plain classes; need no Ray."""

import time
from typing import Any

import numpy as np
import torch

from infra.storage import location, storage_errors, write_atomic
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.store.shards import parquet_bytes, to_table
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokens import TokenKind


class Encoder:
    """Holds one tokenizer on its device and encodes batches of one fixed size, the last one padded.

    A fixed batch shape keeps the stored bytes independent of how images were grouped.
    """

    def __init__(self, weights: TokenizerFile, kind: TokenKind, batch_size: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load(weights.kind, weights.path).to(self.device)
        self.dtype, self.batch_size = getattr(torch, kind.dtype.name), batch_size

    def __call__(self, images: np.ndarray, *, flip: bool = False) -> np.ndarray:
        """Return the values to store (N, *kind.shape) of images uint8 (N, H, W, 3), mirrored if `flip`."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padded = np.zeros((self.batch_size, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch[:, :, ::-1] if flip else batch
            encoded = self.tokenizer.encode(from_uint8(padded, self.device))[: len(batch)]
            parts.append(encoded.to(self.dtype).cpu().numpy())
        return np.concatenate(parts)


class PartEncoder:
    """Encodes a part and stages its values; passes on only names and counts."""

    def __init__(self, weights: TokenizerFile, kind: TokenKind, batch_size: int, staging: str) -> None:
        self.encoder, self.kind, self.staging = Encoder(weights, kind, batch_size), kind, location(staging)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.time()
        keys, path = list(row["keys"]), self.staging / f"{row['shard']:06d}-{row['index']:06d}.parquet"
        if keys:
            images = np.frombuffer(row["images"], np.uint8).reshape(len(keys), row["size"], row["size"], 3)
            values, flipped = self.encoder(images), self.encoder(images, flip=True)
        stopped, fault = time.time(), row["fault"]
        if keys:
            try:
                write_atomic(path, parquet_bytes(to_table(self.kind, keys, list(row["labels"]), values, flipped)))
            except storage_errors() as error:
                fault = str(error)
        kept = ("shard", "index", "last", "rejected_keys", "rejected_reasons")
        return {
            **{name: row[name] for name in kept},
            "fault": fault,
            "rows": len(keys),
            "path": str(path),
            "started": started,
            "stopped": stopped,
        }
