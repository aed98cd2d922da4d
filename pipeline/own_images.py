"""`mar tokenize --source ...`: latents of the user's own images, without a recipe."""

from dataclasses import dataclass, field
from typing import Any

import tyro
from upath import UPath

from infra.artifact import Step
from infra.cluster import Compute, Stage
from infra.console import say, stage
from infra.storage import location, require_writable
from tokenize_jobs import tokenizers
from tokenize_jobs.config import Tokenize
from tokenize_jobs.sources.listing import scan


@dataclass(frozen=True, kw_only=True)
class TokenizeOwn:
    """Encode labelled images into a latent store that every later run reuses."""

    source: str
    """Folder of .tar shards (WebDataset), .parquet files or class folders; local, s3://, gs://, ..."""
    tokenizer: str
    """KIND:PATH: kl16:FILE, diffusers:FOLDER, taef2:FOLDER, or pixels."""
    image_size: int = 256
    """Pixels a side after the centre crop."""
    num_classes: int = 0
    """Labels are 0..num_classes-1; 0 counts class folders or the lines of classes.tsv."""
    out: str = "output"
    """Root folder or bucket; the store is below ROOT/artifacts/latents."""
    batch_size: int = 32
    """Images encoded at once."""
    max_bad_fraction: float = 0.01
    """Fail, before publishing, when a larger share of the images had to be quarantined."""
    encode: Stage = field(default_factory=lambda: Stage(cpus=1))
    """Processes that encode images; others read for them."""
    address: str = ""
    """Ray cluster to join; empty takes RAY_ADDRESS, or starts a local one."""


def tokenize_own(words: list[str]) -> int:
    """Make the store, or say that it is cached."""
    own = tyro.cli(TokenizeOwn, prog="mar tokenize", args=words)
    step = latents_step(own)
    artifact, state = step.find(), "cached"
    if artifact is None:
        require_writable(step.root)
        artifact, state = step.build(), "made"
    measured = artifact.measured
    counts = f"{measured['images']} images, {measured['quarantined']} quarantined"
    stage("latents", f"{state}: {counts}, latent scale {measured['latent_scale']:.4f}")
    say(str(artifact.path))
    return 0


def latents_step(own: TokenizeOwn) -> Step:
    """Return the step that makes the store: the same as that of every recipe which asks for these latents."""
    source = scan(own.source, own.num_classes)
    chosen = tokenizers.parse(own.tokenizer)
    weights = tokenizers.find(chosen.kind, chosen.path)
    config = Tokenize(image_size=own.image_size, batch_size=own.batch_size, max_bad_fraction=own.max_bad_fraction)
    compute = Compute(out=own.out, address=own.address, encode=own.encode)

    def make(path: UPath) -> dict[str, Any]:
        from tokenize_jobs.job.latents_job import tokenize

        return tokenize(config, weights, source, path, compute)

    inputs = {"images": source.digest[:16], "tokenizer": weights.hash}
    label = config.label(chosen.kind)
    return Step(root=location(own.out), name="latents", label=label, config=config, inputs=inputs, make=make)
