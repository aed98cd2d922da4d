"""Draws many images from a model over the cluster, in ranges that are made once and survive a kill.

model directory -> images-000000.npy, ... (uint8 (n, H, W, 3)), each written whole; labels follow from the index
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from upath import UPath

from evaluate.config import Generate, Sampling
from evaluate.sampler import ImageNoise, Known, check, sample
from infra.cluster import Compute, connected
from infra.console import Progress
from infra.errors import InputError
from infra.storage import location, write_atomic
from tokenize_jobs.config import Weights
from tokenize_jobs.tokenizers import load
from train.checkpoint import read_card, read_model


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Return uint8 (B, H, W, 3) of images (B, 3, H, W) in [-1, 1], rounded as the published evaluation does."""
    scaled = ((images.float().cpu() + 1) * 127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class Generator:
    """One model and its tokenizer's decoder on one device. A plain class; needs no Ray."""

    def __init__(self, model: str, weights: Weights, *, use_ema: bool = True, cores: int = 0) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if cores:
            torch.set_num_threads(cores)
        self.card = read_card(location(model))
        self.model = read_model(location(model), ema=use_ema).to(self.device)
        self.tokenizer = load(weights.kind, weights.path).to(self.device)

    def labels(self, indices: range) -> torch.Tensor:
        """Return the class of each image: index modulo the number of classes."""
        return torch.tensor([index % self.card.model.num_classes for index in indices])

    def encode(self, image: np.ndarray) -> torch.Tensor:
        """Return the latents (1, C, h, w), in the model's scale, of an image uint8 (H, W, 3): the posterior's mean."""
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        return self.tokenizer.encode(pixels)[:, : self.tokenizer.channels].float() * self.card.latent_scale

    def draw(
        self, labels: torch.Tensor, indices: range, seed: int, sampling: Sampling, known: Known | None = None
    ) -> np.ndarray:
        """Return images uint8 (B, H, W, 3) of these labels; `indices` name the random streams."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            latents = sample(self.model, labels, ImageNoise(seed, indices), sampling, known)
        # decoding outside autocast: early samples are large, and half precision would make them black
        return to_uint8(self.tokenizer.decode(latents.float() / self.card.latent_scale))


def generate(
    config: Generate, model: UPath, weights: Weights, out: UPath, compute: Compute, name: str = "generate"
) -> dict[str, Any]:
    """Draw `config.images` images below `out`; ranges that exist are not drawn again.

    Raises InputError when the model cannot be sampled with these settings.
    """
    card = read_card(model)
    if card.tokenizer_hash != weights.hash:
        raise InputError(
            f"tokenizer {weights.kind} {weights.hash} is not the one of {model}: it was trained on latents of "
            f"{card.tokenizer_kind} {card.tokenizer_hash}"
        )
    check(card.model, config.sampling, torch.arange(card.model.num_classes))
    ranges = [
        range(start, min(start + config.batch_size, config.images))
        for start in range(0, config.images, config.batch_size)
    ]
    pending = [span for span in ranges if not part_path(out, span).exists()]
    progress, done = Progress(name, config.images, "images"), config.images - sum(map(len, pending))
    progress.update(done)
    if pending:
        with connected(compute):
            ray.data.DataContext.get_current().enable_progress_bars = False
            rows = ray.data.from_items(
                [{"start": s.start, "stop": s.stop} for s in pending], override_num_blocks=len(pending)
            )
            drawn = rows.map(
                _RangeGenerator,
                fn_constructor_args=(str(model), weights, config, str(out), compute.cores),
                compute=ray.data.ActorPoolStrategy(size=compute.workers),
                num_cpus=compute.cores, num_gpus=compute.gpus_per_worker or None,
            )  # fmt: skip
            for row in drawn.iter_rows():
                done += row["stop"] - row["start"]
                progress.update(done)
    return {"images": config.images}


class _RangeGenerator:
    def __init__(self, model: str, weights: Weights, config: Generate, out: str, cores: int) -> None:
        self.generator = Generator(model, weights, use_ema=config.use_ema, cores=cores)
        self.config, self.out = config, location(out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        span = range(int(row["start"]), int(row["stop"]))
        images = self.generator.draw(self.generator.labels(span), span, self.config.seed, self.config.sampling)
        write_images(self.out, span, images)
        return row


def part_path(out: UPath, span: range) -> UPath:
    """Return the file of a range of image indices."""
    return out / f"images-{span.start:07d}-{span.stop:07d}.npy"


def write_images(out: UPath, span: range, images: np.ndarray) -> None:
    """Write a range of images, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    write_atomic(part_path(out, span), buffer.getvalue())


def read_images(out: UPath) -> Iterator[np.ndarray]:
    """Yield the generated images uint8 (n, H, W, 3), in the order of their index."""
    for path in sorted(out.glob("images-*.npy"), key=str):
        with path.open("rb") as file:
            yield np.load(file, allow_pickle=False)
