"""Fits the small tokenizer as one Ray task, so that it runs where the GPUs are."""

from pathlib import Path

import numpy as np
import ray
import torch
from upath import UPath

from infra.cluster import Compute, connected
from infra.console import Progress, stage
from infra.errors import InputError
from infra.follow import append, following
from tokenize_jobs.config import FitTokenizer
from tokenize_jobs.results import TokenizerResult
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import cropped_images
from tokenize_jobs.tokenizers.fit import fit, reconstruction_psnr

_MOST_IMAGES = 20_000  # fits in memory at any size this tokenizer is meant for


def fit_tokenizer(
    config: FitTokenizer, images: Listing, heldout: Listing | None, size: int, out: UPath, compute: Compute
) -> TokenizerResult:
    """Fit on the source's images and write the tokenizer below `out`; returns the reconstruction PSNRs in dB.

    Raises InputError unless the stride is even and divides the image size.
    """
    config.check(size)
    with connected(compute) as cluster:
        stage("tokenizer", f"fitting on up to {_MOST_IMAGES} images of {size} px")
        progress, log = Progress("tokenizer", config.train_steps, "steps"), Path(str(out)) / "fit.jsonl"
        cpus, gpus = cluster.train.cpus, cluster.train.gpus
        job = _fit.options(num_cpus=cpus, num_gpus=gpus)
        with following(log, lambda line: progress.update(line["step"], f", PSNR {line['psnr']:.1f} dB")):
            return ray.get(job.remote(config, images, heldout, size, str(out), cpus))


@ray.remote(max_retries=2)
def _fit(
    config: FitTokenizer, images: Listing, heldout: Listing | None, size: int, out: str, cores: int
) -> TokenizerResult:
    torch.set_num_threads(cores)

    def report(step: int, psnr: float) -> None:
        if step % 50 == 0:
            append(Path(out) / "fit.jsonl", {"step": step, "psnr": psnr})

    model = fit(config, _load(images, size), Path(out), report)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    quality = reconstruction_psnr(model, _load(heldout, size)) if heldout else None
    return TokenizerResult(parameters=parameters, fit_steps=config.train_steps, psnr_heldout_db=quality)


def _load(source: Listing, size: int) -> np.ndarray:
    """Return images uint8 (N, size, size, 3), at most _MOST_IMAGES; bad ones are left out here and reported later."""
    batches = (batch for shard in source.shards for batch in cropped_images(source, shard, size))
    found: list[np.ndarray] = []
    while sum(map(len, found)) < _MOST_IMAGES and (batch := next(batches, None)) is not None:
        found.append(batch)
    if not found:
        raise InputError(f"image source {source.root}: holds no usable image")
    return np.concatenate(found)[:_MOST_IMAGES]
