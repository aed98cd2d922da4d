"""Evaluation: generated images against real ones, beside a floor (held-out real) and a ceiling (untrained model)."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from upath import UPath

from evaluate.config import Evaluate, Features, Subject, metric_name
from evaluate.features import Extractor, check_weights, weights_hash
from evaluate.frechet import FeatureSums, frechet_distance
from evaluate.generate import Generator, generate, read_images
from evaluate.grid import grid
from infra.cluster import Compute, connected
from infra.console import stage
from infra.fingerprint import canonical
from infra.storage import location, write_atomic
from tokenize_jobs.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources import Manifest, read_shard
from train.checkpoint import read_card, untrained_directory

_BATCH = 256


def evaluate(
    config: Evaluate, subject: Subject, real: Manifest, heldout: Manifest | None, out: UPath, compute: Compute
) -> dict[str, Any]:
    """Measure the model against the training images; leaves images, the sample grid and the sums in `out`.

    Raises InputError when the extractor's weights are missing or the model cannot be sampled.
    """
    check_weights(config.features)
    count, model = config.generate.images, location(subject.model)
    with connected(compute):
        generate(config.generate, model, subject.weights, out / "samples", compute, "evaluate")
        ceiling = untrained_directory(read_card(model), subject.train, out / "untrained")
        generate(config.generate, ceiling, subject.weights, out / "untrained-samples", compute, "untrained")
        jobs = {
            "reference": _sums.options(num_cpus=compute.cores).remote(
                config.features, compute.cores, real, subject.image_size, config.reference_images
            ),
            "samples": _sums.options(num_cpus=compute.cores).remote(
                config.features, compute.cores, str(out / "samples"), 0, 0
            ),
            "untrained": _sums.options(num_cpus=compute.cores).remote(
                config.features, compute.cores, str(out / "untrained-samples"), 0, 0
            ),
        }
        if heldout is not None:
            jobs["heldout"] = _sums.options(num_cpus=compute.cores).remote(
                config.features, compute.cores, heldout, subject.image_size, config.reference_images
            )
        sums: dict[str, FeatureSums] = {}
        for name, job in jobs.items():
            sums[name] = ray.get(job)
            stage("evaluate", f"{config.features.name} features of {sums[name].count} {name} images")
    _save_sums(out / "reference.npz", sums["reference"])
    stage("evaluate", "Fréchet distances")
    measured = {
        "fd": frechet_distance(sums["samples"], sums["reference"]),
        "fd_untrained": frechet_distance(sums["untrained"], sums["reference"]),
        **({"fd_heldout": frechet_distance(sums["heldout"], sums["reference"])} if heldout is not None else {}),
    }
    draw_grid(config, subject, Path(str(out)) / "grid.png")
    return {
        **{name: round(value, 4) for name, value in measured.items()},
        "metric": metric_name(config.features, count),
        "conditions": {
            "features": config.features.name,
            "layer": config.features.layer,
            "extractor_weights": weights_hash(config.features),
            "images": count,
            "reference_images": sums["reference"].count,
            "heldout_images": sums["heldout"].count if heldout is not None else 0,
            "reference_digest": real.digest[:16],
            "rank_deficient": min(count, sums["reference"].count) <= int(config.features.layer),
            "sampling": canonical(config.generate.sampling),
            "seed": config.generate.seed,
            "ema": config.generate.use_ema,
            "classes": "balanced",
        },
    }


def draw_grid(config: Evaluate, subject: Subject, path: Path) -> None:
    """Write the sample grid: the first classes, the same seeds for every model."""
    generator = Generator(subject.model, subject.weights, use_ema=config.generate.use_ema)
    classes = list(generator.card.classes[:10])
    indices = range(len(classes) * config.grid_columns)
    labels = torch.arange(len(classes)).repeat_interleave(config.grid_columns)
    images = generator.draw(labels, indices, config.generate.seed, config.generate.sampling)
    grid(images, classes, config.grid_columns, max(1, 64 // subject.image_size)).save(path)


@ray.remote(num_cpus=1)
def _sums(features: Features, cores: int, images: Manifest | str, size: int, limit: int) -> FeatureSums:
    """Return the feature sums of generated images (a directory) or of the first `limit` real ones (a source)."""
    torch.set_num_threads(cores)
    extractor = Extractor(features)
    batches = read_images(location(images)) if isinstance(images, str) else _real(images, size, limit)
    total: FeatureSums | None = None
    for batch in batches:
        part = FeatureSums.of(extractor(batch))
        total = part if total is None else total + part
    assert total is not None
    return total


def _real(source: Manifest, size: int, limit: int) -> Iterable[np.ndarray]:
    """Yield real images uint8 (n, size, size, 3), cropped as for tokenization."""
    batch: list[np.ndarray] = []
    seen = 0
    for shard in source.shards:
        for sample in read_shard(source, shard):
            if sample.fault or (limit and seen >= limit):
                continue
            try:
                batch.append(centre_crop(decode(sample.content), size))
            except BadImage:
                continue
            seen += 1
            if len(batch) == _BATCH:
                yield np.stack(batch)
                batch = []
    if batch:
        yield np.stack(batch)


def _save_sums(path: UPath, sums: FeatureSums) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, count=sums.count, total=sums.total, outer=sums.outer)
    write_atomic(path, buffer.getvalue())


def read_sums(path: UPath) -> FeatureSums:
    """Read the reference's sums that an evaluation left."""
    with path.open("rb") as file:
        saved = np.load(file, allow_pickle=False)
        return FeatureSums(int(saved["count"]), saved["total"], saved["outer"])
