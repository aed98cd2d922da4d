"""Evaluation: generated images against a reference, beside a floor (held-out real) and, on demand, a ceiling."""

from pathlib import Path

import numpy as np
import torch
from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Evaluate, Generate, Sampling, Subject
from evaluate.grid import sample_grid
from evaluate.measure import Sets, measure
from evaluate.metrics import frechet
from evaluate.metrics.frechet import frechet_distance
from evaluate.reference import RealFeatures, read_reference
from evaluate.results import GRID, EvaluationResult, ReferenceResult
from evaluate.sampling.generate import part_path, read_images
from evaluate.sampling.sampler import check
from infra.cluster import Compute
from infra.console import stage
from infra.errors import InputError
from infra.storage import location
from train.card import ModelCard, read_card
from train.checkpoint import untrained_directory
from train.config import Train


def evaluate(
    config: Evaluate,
    subject: Subject,
    reference: UPath,
    heldout: UPath | None,
    sampling: Sampling,
    out: UPath,
    compute: Compute,
) -> EvaluationResult:
    """Draw images with `sampling` and measure them; leaves the images and the sample grid in `out`.

    `reference` and `heldout` are what `make_reference` left. Raises InputError when these are of another size or
    extractor, the extractor's weights are missing, the model cannot be sampled with these settings, or its latents
    are another tokenizer's.
    """
    real = read_reference(reference)
    floor = None if heldout is None else read_reference(heldout)
    card = _checked_card(subject, sampling, real.about, floor)
    models = {"samples": subject.model}
    if config.ceiling:
        models["untrained"] = str(untrained_directory(card, Train().seed, out / "untrained-model"))
    sums = measure(
        Sets(
            models=models, weights=subject.weights, generate=config.generate, sampling=sampling,
            features=real.about.features, out=str(out),
        ),
        compute,
    )  # fmt: skip
    stage("evaluation", "Fréchet distances")
    sets = {name: found.statistics() for name, found in sums.items()}
    if floor is not None:
        sets["heldout"] = floor.statistics
    numbers = {name: {frechet.NAME: round(frechet_distance(found, real.statistics), 4)} for name, found in sets.items()}
    count = config.generate.images
    picture = sample_grid(
        lambda index: _sample(config.generate, out / "samples", index), count, card.classes, config.grid_columns
    )
    picture.save(Path(str(out)) / GRID)
    conditions = conditions_against(real.about, count, sampling)
    return EvaluationResult(
        metric=conditions.title, numbers=numbers["samples"], floor=numbers.get("heldout", {}),
        ceiling=numbers.get("untrained", {}), conditions=conditions, heldout_images=floor.about.images if floor else 0,
        rank_deficient=conditions.is_rank_deficient, sampling=sampling, seed=config.generate.seed,
        ema=config.generate.use_ema,
    )  # fmt: skip


def conditions_against(reference: ReferenceResult, images: int, sampling: Sampling) -> Conditions:
    """Return the conditions of numbers of so many generated images against a reference."""
    return Conditions(
        extractor=reference.features.name, layer=reference.features.layer,
        extractor_weights=reference.extractor_weights, image_size=reference.image_size, images=images,
        reference=reference.digest, reference_images=reference.images, precision=sampling.precision,
    )  # fmt: skip


def _checked_card(
    subject: Subject, sampling: Sampling, reference: ReferenceResult, floor: RealFeatures | None
) -> ModelCard:
    """Return the model's card. Raises InputError for what does not go together."""
    card, weights = read_card(location(subject.model)), subject.weights
    if card.tokenizer_hash != weights.hash:
        raise InputError(
            f"tokenizer {weights.kind} {weights.hash} is not the one of {subject.model}: it was trained on latents of "
            f"{card.tokenizer_kind} {card.tokenizer_hash}"
        )
    if reference.image_size != subject.image_size:
        raise InputError(
            f"the reference is of images of {reference.image_size} pixels, the model's have {subject.image_size}: make "
            "a reference of that size"
        )
    if floor is not None and (floor.about.image_size, floor.about.extractor_weights) != (
        reference.image_size,
        reference.extractor_weights,
    ):
        raise InputError("reference and held-out images were measured at another size, or with another extractor")
    reference.features.check()
    check(card.model, sampling, torch.arange(card.model.num_classes))
    return card


def _sample(config: Generate, folder: UPath, index: int) -> np.ndarray:
    """Return generated image `index`, uint8 (H, W, 3)."""
    start = index // config.batch_size * config.batch_size
    return read_images(part_path(folder, range(start, min(start + config.batch_size, config.images))))[index - start]
