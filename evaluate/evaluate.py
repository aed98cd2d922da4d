"""Evaluation: generated images against a reference, beside a floor (held-out real) and, on demand, a ceiling."""

from pathlib import Path

import numpy as np
import torch
from upath import UPath

from evaluate.config import Evaluate, Sampling
from evaluate.drawn import Drawn, write_shard
from evaluate.finish import Measured, finish
from evaluate.grid import sample_grid
from evaluate.likelihood import likelihood
from evaluate.measure import DRAWING, Drawing, draw, feature_set, shown
from evaluate.reference import RealFeatures, read_reference
from evaluate.results import GRID, EvaluationResult, Likelihood, ReferenceResult
from evaluate.sampling.sampler import check
from evaluate.subject import Subject
from infra.artifact import load
from infra.cluster import Compute
from infra.code import digests
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint
from infra.hold import holding
from infra.storage import location
from tokenize_jobs.sources.imagenet import spoken
from tokenize_jobs.sources.listing import Images
from train.card import ModelCard, content_digest, read_card
from train.checkpoint import untrained_directory
from train.config import Train
from train.results import CheckpointResult


def evaluate(
    config: Evaluate,
    subject: Subject,
    reference: UPath,
    heldout: UPath | None,
    sampling: Sampling,
    out: UPath,
    compute: Compute,
    images: Images | None = None,
) -> EvaluationResult:
    """Draw images with `sampling` and measure them; leaves the sample grid and report.html in `out`.

    Features of the drawn images are kept beside `out`, where an evaluation of more images finds them. `reference` and
    `heldout` are what `make_reference` left; `images` are those whose likelihood is told. Raises InputError when the
    former are of another size or extractor, weights of a network are missing, the model cannot be sampled with these
    settings, or its latents are another tokenizer's.
    """
    real = read_reference(reference)
    floor = None if heldout is None else read_reference(heldout)
    card = _checked_card(config, subject, sampling, real.about, floor)
    classes = card.model.num_classes
    drawn = _draw(config, subject, real.about, sampling, out, compute, content_digest(location(subject.model)))
    unlearned = None
    if config.ceiling:
        folder = untrained_directory(card, subject.weights, Train().seed, out / "untrained-model")
        untrained = Subject(str(folder), subject.weights, subject.image_size)
        unlearned = _draw(config, untrained, real.about, sampling, out, compute, fingerprint(["untrained", card.model]))
    every = [of for of in (drawn, unlearned) if of is not None]
    drawing, features = np.concatenate([of.seconds for of in every]).sum(0)
    likely = Likelihood()
    if images is not None and card.model.head.has_density:
        likely = likelihood(subject, images, sampling, out, compute, ema=config.generate.use_ema)
    about = {
        "sampling": sampling, "seed": config.generate.seed, "ema": config.generate.use_ema,
        "train_steps": card.train_steps, "training": _training(location(subject.model)),
        "classifier": config.classifier.told,
    }  # fmt: skip
    return finish(
        Measured(
            real=real, floor=floor, samples=feature_set(drawn, classes),
            untrained=None if unlearned is None else feature_set(unlearned, classes),
            classes=spoken(card.classes) or tuple(str(label) for label in range(classes)),
            shown=_leave_grid(config, drawn, card, out), precision=sampling.precisions,
            seconds={"drawing": float(drawing), "features": float(features)}, likelihood=likely, about=about,
        ),
        out,
    )  # fmt: skip


def _draw(
    config: Evaluate,
    subject: Subject,
    real: ReferenceResult,
    sampling: Sampling,
    out: UPath,
    compute: Compute,
    model: str,
) -> Drawn:
    """Return the images of a model whose digest is `model`; those that any evaluation drew with this code are kept.

    Which of them are kept as pictures decides no feature: where too few were, those ranges alone are drawn again.
    """
    judge = config.classifier.features
    generate = config.generate
    identity = [
        model, subject.weights.hash, canonical(sampling), generate.seed, generate.use_ema, real.features.name,
        real.extractor_weights, judge.digest if judge else "", digests(DRAWING),
    ]  # fmt: skip
    drawing = Drawing(
        model=subject.model, weights=subject.weights, sampling=sampling, config=config, features=real.features,
        folder=str(out.parent / "features" / fingerprint(identity)),
    )  # fmt: skip
    with holding(out.parent / "features", shared=True):  # so that nobody removes them meanwhile
        return draw(drawing, compute)


def _training(model: UPath) -> str:
    """Return a digest of the training that a checkpoint is of, whatever its length; '' of a model without record."""
    checkpoint = load(model, CheckpointResult)
    if checkpoint is None or not isinstance(config := checkpoint.record.get("config"), dict):
        return ""
    return fingerprint([{**config, "train_steps": 0}, checkpoint.record.get("inputs")])


def _leave_grid(config: Evaluate, drawn: Drawn, card: ModelCard, out: UPath) -> dict[int, np.ndarray]:
    """Write the sample grid as a picture, and its images as a shard; return these by index."""
    classes, count = card.model.num_classes, config.generate.images
    kept = dict(zip(drawn.shown_at.tolist(), drawn.shown, strict=True))
    images = {index: kept[index] for index in shown(config, range(count), classes)}
    if images:
        picture = sample_grid(images.__getitem__, count, spoken(card.classes), config.grid_columns)
        picture.save(Path(str(out)) / GRID)
        write_shard(out / "samples.tar", list(images.values()), list(images), classes)
    return images


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
