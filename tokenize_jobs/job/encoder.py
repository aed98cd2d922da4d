"""What turns decoded images into tokens on the workers of the tokenization job. Plain classes; need no Ray."""

import threading
import time
from typing import Any

import numpy as np
import torch

from infra.storage import location, storage_errors, write_atomic
from tokenize_jobs.config import Precision, Tokenize, TokenizerFile
from tokenize_jobs.store.shards import parquet_bytes, to_table
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokens import TokenKind


class Encoder:
    """Holds one tokenizer on its device and encodes batches of one fixed size, the last one padded.

    A fixed batch shape keeps the stored bytes independent of how images were grouped.
    """

    def __init__(self, weights: TokenizerFile, kind: TokenKind, batch_size: int, precision: Precision = "fp32") -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load(weights.kind, weights.path).to(self.device)
        self.dtype, self.batch_size, self.precision = getattr(torch, kind.dtype.name), batch_size, precision

    def __call__(self, images: np.ndarray, *, flip: bool = False) -> np.ndarray:
        """Return the values to store (N, *kind.shape) of images uint8 (N, H, W, 3), mirrored if `flip`."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padded = np.zeros((self.batch_size, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch[:, :, ::-1] if flip else batch
            encoded = self.encode(from_uint8(padded, self.device), self.precision)[: len(batch)]
            parts.append(encoded.to(self.dtype).cpu().numpy())
        return np.concatenate(parts)

    def encode(self, images: torch.Tensor, precision: Precision) -> torch.Tensor:
        """Return what the tokenizer makes of images (B, 3, H, W) in [-1, 1], computed in this precision."""
        if precision != "fp32":
            images = images.contiguous(memory_format=torch.channels_last)  # what a GPU's half-precision kernels take
        is_fast, before = precision == "tf32", torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = is_fast
        try:
            with (
                torch.backends.cudnn.flags(enabled=True, allow_tf32=is_fast),
                torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16"),
            ):
                encoded = self.tokenizer.encode(images)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        return encoded.float() if encoded.is_floating_point() else encoded

    def error(self, images: np.ndarray) -> dict[str, float]:
        """Return how far what is encoded of images uint8 (N, H, W, 3) is from fp32, over the root mean square of that.

        Of codes it is the share that differ.
        """
        found, exact = (
            torch.cat([self.encode(from_uint8(image[None], self.device), of) for image in images])
            for of in (self.precision, "fp32")
        )
        if not exact.is_floating_point():
            return {"differing": float((found != exact).float().mean())}
        scale = exact.square().mean().sqrt().clamp_min(1e-12)
        return {
            "relative_rms": float((found - exact).square().mean().sqrt() / scale),
            "relative_largest": float((found - exact).abs().max() / scale),
        }


class PartEncoder:
    """Encodes a part and stages its values; passes on only names and counts."""

    def __init__(self, weights: TokenizerFile, kind: TokenKind, config: Tokenize, staging: str) -> None:
        self.encoder = Encoder(weights, kind, config.batch_size, config.precision)
        self.kind, self.staging, self.turn = kind, location(staging), threading.Lock()

    def error(self, images: np.ndarray) -> dict[str, float]:
        """Return the error of the encoder's precision on images uint8 (N, H, W, 3)."""
        return self.encoder.error(images)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode a part and write it; of two calls at a time one encodes while the other writes."""
        keys, path = list(row["keys"]), self.staging / f"{row['shard']:06d}-{row['index']:06d}.parquet"
        with self.turn:
            started = time.time()
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
