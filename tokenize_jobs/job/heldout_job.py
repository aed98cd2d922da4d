"""A small latent store of images that are never trained on, for a training to measure its loss on."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import ray
import torch
from upath import UPath

from infra.cluster import Compute, connected
from infra.storage import location
from tokenize_jobs.config import Tokenize, TokenizerFile
from tokenize_jobs.job.encoder import Encoder
from tokenize_jobs.job.latents_job import kind_of
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import CroppedSample, crop_shard
from tokenize_jobs.store.shards import MANIFEST, commit_shard, publish, to_table

_SHARD = "heldout"


def tokenize_heldout(
    config: Tokenize, weights: TokenizerFile, source: Listing, most: int, out: UPath, compute: Compute
) -> UPath | None:
    """Return the store at `out` of up to `most` images, as many of each shard; made now unless it is there.

    None when the source holds no usable image.
    """
    if not (out / MANIFEST).exists():
        with connected(compute) as cluster:
            workers = cluster.encode
            job = ray.remote(_encode).options(
                num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=2,
                scheduling_strategy="DEFAULT",  # a sweep's trial has a place of its own, without cores
            )  # fmt: skip
            ray.get(job.remote(config, weights, source, most, str(out), workers.cpus))
    return out if (out / MANIFEST).exists() else None


def _encode(config: Tokenize, weights: TokenizerFile, source: Listing, most: int, out: str, cores: int) -> None:
    torch.set_num_threads(cores)
    samples = list(_first(source, config.image_size, most))
    if not samples:
        return
    root, kind = location(out), kind_of(weights, config.image_size)
    encoder = Encoder(weights, kind, config.batch_size, config.precision)
    images = np.stack([sample.pixels for sample in samples])
    keys, labels = [sample.key for sample in samples], [sample.label for sample in samples]
    table = to_table(kind, keys, labels, encoder(images), encoder(images, flip=True))
    commit_shard(root, _SHARD, table, kind, [])
    tokenizer = {"kind": weights.kind, "weights": weights.hash}
    publish(root, [_SHARD], kind, {"tokenizer": tokenizer, "classes": list(source.classes)})


def _first(source: Listing, size: int, most: int) -> Iterator[CroppedSample]:
    """Yield the first usable samples of each shard, one open at a time; what one lacks, the later ones make up for."""
    left = most
    for place, shard in enumerate(source.shards):
        usable = (sample for sample in crop_shard(source, shard, size) if sample.pixels is not None)
        for sample in islice(usable, -(-left // (len(source.shards) - place))):
            left -= 1
            yield sample
        if not left:
            return
