"""Evaluation: generated images against real ones, beside a floor (held-out real) and a ceiling (untrained model)."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from upath import UPath

from evaluate.config import Evaluate, Generate, Subject, metric_name
from evaluate.features import weights_hash
from evaluate.grid import sample_grid
from evaluate.measure import Sets, measure
from evaluate.metrics.frechet import FeatureSums, frechet_distance
from evaluate.sampling.generate import part_path, read_images
from evaluate.sampling.sampler import check
from infra.cluster import Compute
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import location, write_atomic
from tokenize_jobs.sources.listing import Listing
from train.checkpoint import read_card, untrained_directory


def evaluate(
    config: Evaluate, subject: Subject, real: Listing, heldout: Listing | None, out: UPath, compute: Compute
) -> dict[str, Any]:
    """Measure the model against the training images; leaves images, the sample grid and the sums in `out`.

    Raises InputError when the extractor's weights are missing, the model cannot be sampled with these settings, or
    its latents are another tokenizer's.
    """
    config.features.check()
    model, count, weights = location(subject.model), config.generate.images, subject.weights
    card = read_card(model)
    if card.tokenizer_hash != weights.hash:
        raise InputError(
            f"tokenizer {weights.kind} {weights.hash} is not the one of {model}: it was trained on latents of "
            f"{card.tokenizer_kind} {card.tokenizer_hash}"
        )
    check(card.model, config.generate.sampling, torch.arange(card.model.num_classes))
    ceiling = untrained_directory(card, subject.train, out / "untrained-model")
    sums = measure(
        Sets(
            models={"samples": subject.model, "untrained": str(ceiling)},
            real={"reference": real, **({} if heldout is None else {"heldout": heldout})},
            weights=weights, generate=config.generate, features=config.features, image_size=subject.image_size,
            most_real=config.reference_images, out=str(out),
        ),
        compute,
    )  # fmt: skip
    _save_sums(out / "reference.npz", sums["reference"])
    stage("evaluation", "Fréchet distances")
    measured = {
        f"fd{suffix}": round(frechet_distance(sums[name], sums["reference"]), 4)
        for name, suffix in (("samples", ""), ("untrained", "_untrained"), ("heldout", "_heldout"))
        if name in sums
    }
    picture = sample_grid(
        lambda index: _sample(config.generate, out / "samples", index), count, card.classes, config.grid_columns
    )
    picture.save(Path(str(out)) / "grid.png")
    return {
        **measured,
        "metric": metric_name(config.features, count),
        "conditions": {
            "features": config.features.name,
            "layer": config.features.layer,
            "extractor_weights": weights_hash(config.features),
            "images": count,
            "reference_images": sums["reference"].count,
            "heldout_images": sums["heldout"].count if "heldout" in sums else 0,
            "reference_digest": real.digest[:16],
            "rank_deficient": min(count, sums["reference"].count) <= int(config.features.layer),
            "sampling": canonical(config.generate.sampling),
            "seed": config.generate.seed,
            "ema": config.generate.use_ema,
            "classes": "balanced",
        },
    }


def _sample(config: Generate, folder: UPath, index: int) -> np.ndarray:
    """Return generated image `index`, uint8 (H, W, 3)."""
    start = index // config.batch_size * config.batch_size
    return read_images(part_path(folder, range(start, min(start + config.batch_size, config.images))))[index - start]


def _save_sums(path: UPath, sums: FeatureSums) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, count=sums.count, total=sums.total, outer=sums.outer)
    write_atomic(path, buffer.getvalue())


def read_sums(path: UPath) -> FeatureSums:
    """Read the reference's sums that an evaluation left."""
    with path.open("rb") as file:
        saved = np.load(file, allow_pickle=False)
        return FeatureSums(int(saved["count"]), saved["total"], saved["outer"])
