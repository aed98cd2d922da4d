"""Evaluation: generated images against a reference, beside a floor (held-out real) and, on demand, a ceiling."""

import time
from pathlib import Path

import numpy as np
import torch
from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Evaluate, Sampling, Subject
from evaluate.drawn import Drawn, is_shown, write_shard
from evaluate.grid import sample_grid
from evaluate.measure import Drawing, draw, feature_set
from evaluate.metrics.table import errors, numbers
from evaluate.reference import RealFeatures, read_reference
from evaluate.results import GRID, EvaluationResult, ReferenceResult
from evaluate.sampling.sampler import check
from infra.cluster import Compute
from infra.code import digests
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint
from infra.hold import holding
from infra.storage import location
from tokenize_jobs.sources.imagenet import spoken
from train.card import ModelCard, content_digest, read_card
from train.checkpoint import untrained_directory
from train.config import Train

_DRAWING = ("evaluate/sampling", "evaluate/features.py", "train/models", "tokenize_jobs/tokenizers", "infra/seeding.py")
"""Code that decides what is kept of generated images."""


def evaluate(
    config: Evaluate,
    subject: Subject,
    reference: UPath,
    heldout: UPath | None,
    sampling: Sampling,
    out: UPath,
    compute: Compute,
) -> EvaluationResult:
    """Draw images with `sampling` and measure them; leaves the sample grid and report.html in `out`.

    Features of the drawn images are kept beside `out`, where an evaluation of more images finds them. `reference` and
    `heldout` are what `make_reference` left. Raises InputError when these are of another size or extractor, weights of
    a network are missing, the model cannot be sampled with these settings, or its latents are another tokenizer's.
    """
    real = read_reference(reference)
    floor = None if heldout is None else read_reference(heldout)
    card = _checked_card(config, subject, sampling, real.about, floor)
    classes, count = card.model.num_classes, config.generate.images
    drawn = _draw(config, subject, real.about, sampling, out, compute, content_digest(location(subject.model)))
    sets = {"samples": feature_set(drawn, classes)}
    if config.ceiling:
        untrained = Subject(
            str(untrained_directory(card, Train().seed, out / "untrained-model")), subject.weights, subject.image_size
        )
        unlearned = _draw(config, untrained, real.about, sampling, out, compute, fingerprint(["untrained", card.model]))
        sets["untrained"] = feature_set(unlearned, classes)
    if floor is not None:
        sets["heldout"] = floor.set
    start = time.monotonic()
    found = {name: numbers(of, real.set) for name, of in sets.items()}
    bars = errors(sets["samples"], real.set, found["samples"])
    stage("evaluation", f"numbers and error bars of {count} images in {time.monotonic() - start:.1f} s")
    shown = _leave_grid(config, drawn, card, out)
    conditions = conditions_against(real.about, count, sampling)
    result = EvaluationResult(
        metric=conditions.title, numbers=found["samples"], errors=bars, floor=found.get("heldout", {}),
        ceiling=found.get("untrained", {}), conditions=conditions, heldout_images=floor.about.images if floor else 0,
        rank_deficient=conditions.is_rank_deficient, sampling=sampling, seed=config.generate.seed,
        ema=config.generate.use_ema,
    )  # fmt: skip
    from evaluate.report.page import Findings, write_report  # matplotlib takes a second to import

    names = spoken(card.classes) or tuple(str(label) for label in range(classes))
    write_report(
        Findings(
            result=result, classes=names, generated=sets["samples"], shown=shown, real=real,
            heldout=floor.set if floor else None,
        ),
        out,
    )  # fmt: skip
    return result


def _draw(
    config: Evaluate,
    subject: Subject,
    real: ReferenceResult,
    sampling: Sampling,
    out: UPath,
    compute: Compute,
    model: str,
) -> Drawn:
    """Return the images of a model whose digest is `model`; those that any evaluation drew with this code are kept."""
    judge = config.classifier.features
    generate = config.generate
    identity = [
        model, subject.weights.hash, canonical(sampling), generate.seed, generate.use_ema, real.features.name,
        real.extractor_weights, judge.digest if judge else "", config.keep, config.grid_columns, digests(_DRAWING),
    ]  # fmt: skip
    drawing = Drawing(
        model=subject.model, weights=subject.weights, sampling=sampling, config=config, features=real.features,
        folder=str(out.parent / "features" / fingerprint(identity)),
    )  # fmt: skip
    with holding(out.parent / "features", shared=True):  # so that nobody removes them meanwhile
        return draw(drawing, compute)


def _leave_grid(config: Evaluate, drawn: Drawn, card: ModelCard, out: UPath) -> dict[int, np.ndarray]:
    """Write the sample grid as a picture, and its images as a shard; return these by index."""
    classes, count = card.model.num_classes, config.generate.images
    indices = [index for index in range(count) if is_shown(index, classes, config.grid_columns)]
    images = dict(zip(indices, drawn.shown, strict=False))
    if images:
        picture = sample_grid(images.__getitem__, count, spoken(card.classes), config.grid_columns)
        picture.save(Path(str(out)) / GRID)
        write_shard(out / "samples.tar", list(images.values()), list(images), classes)
    return images


def conditions_against(reference: ReferenceResult, images: int, sampling: Sampling) -> Conditions:
    """Return the conditions of numbers of so many generated images against a reference."""
    return Conditions(
        extractor=reference.features.name, layer=reference.features.network.layer,
        dimension=reference.features.network.dimension,
        extractor_weights=reference.extractor_weights, image_size=reference.image_size, images=images,
        reference=reference.digest, reference_images=reference.images, precision=sampling.precisions,
    )  # fmt: skip


def _checked_card(
    config: Evaluate, subject: Subject, sampling: Sampling, reference: ReferenceResult, floor: RealFeatures | None
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
    config.classifier.check(card.model.num_classes)
    check(card.model, sampling, torch.arange(card.model.num_classes))
    return card
