"""Fits a tokenizer as one Ray task, so that it runs where the GPUs are."""

from dataclasses import replace
from pathlib import Path

import ray
import torch
from upath import UPath

from infra.cluster import Compute, connected
from infra.console import Progress, stage
from infra.errors import InputError
from infra.follow import append, following
from tokenize_jobs.config import MOST_FITTED, Fit
from tokenize_jobs.results import TokenizerResult
from tokenize_jobs.sources.listing import Images, Listing
from tokenize_jobs.sources.samples import evenly
from tokenize_jobs.sources.survey import require_usable
from tokenize_jobs.tokenizers.fit import fit, reconstruction_psnr

_MOST_HELDOUT, _MOST_SHARDS = 1000, 1024


def fit_tokenizer(config: Fit, images: Images, size: int, out: UPath, compute: Compute) -> TokenizerResult:
    """Fit on the images to train on and write the tokenizer below `out`; its quality is that on held-out images.

    Raises InputError for a config that does not fit the image size, and at once where no picture can be used.
    """
    config.check(size)
    require_usable(images.train)
    with connected(compute) as cluster:
        stage("tokenizer", f"fitting on up to {MOST_FITTED} images of {size} px")
        progress, log = Progress("tokenizer", config.steps, "steps"), Path(str(out)) / "fit.jsonl"
        cpus, gpus = cluster.train.cpus, cluster.train.gpus
        job = _fit.options(num_cpus=cpus, num_gpus=gpus)
        with following(log, lambda line: progress.update(line["step"], f", PSNR {line['psnr']:.1f} dB")):
            return ray.get(job.remote(config, images, size, str(out), cpus))


@ray.remote(max_retries=2)
def _fit(config: Fit, images: Images, size: int, out: str, cores: int) -> TokenizerResult:
    torch.set_num_threads(cores)

    def report(step: int, psnr: float) -> None:
        if step % 50 == 0:
            append(Path(out) / "fit.jsonl", {"step": step, "psnr": psnr})

    found = evenly(_some_shards(images.train), size, MOST_FITTED)
    if not len(found):
        raise InputError(f"image source {images.train.root}: holds no usable image")
    model = fit(config, found, Path(out), report)
    heldout = evenly(_some_shards(images.heldout), size, _MOST_HELDOUT) if images.heldout else found[:0]
    return TokenizerResult(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        fit_steps=config.steps, fit_images=len(found),
        psnr_heldout_db=reconstruction_psnr(model, heldout) if len(heldout) else None,
    )  # fmt: skip


def _some_shards(source: Listing) -> Listing:
    """Return a source with every k-th of its shards, so that few enough are opened."""
    return replace(source, shards=source.shards[:: -(-len(source.shards) // _MOST_SHARDS)])
