"""What one trial does: draws images with one setting, measures them, and leaves the result for every later sweep.

A folder holds the trials of one model against one reference: <identity>.json, its grid <identity>.png, and the features
of drawn images by range, so that an interrupted trial, or one of more images, goes on.
"""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from upath import UPath

from evaluate.config import Sampling
from evaluate.drawn import Drawn, cover, find_ranges, merged, range_path, read_range, write_drawn
from evaluate.features import Extractor
from evaluate.grid import sample_grid
from evaluate.intervals import frechet_error
from evaluate.measure import feature_set
from evaluate.metrics import frechet
from evaluate.metrics.sets import Statistics
from evaluate.reference import read_reference
from evaluate.sampling.generate import Generator
from evaluate.subject import Subject
from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import location, write_json
from tune.results import ERROR, Trial, label, trial_identity
from tune.search import SECONDS

BATCH = 64
_NO_CLASSES = np.empty(0, np.int64)


@dataclass(frozen=True)
class Work:
    """What every trial needs to know."""

    subject: Subject
    reference: str
    folder: str
    """Of the trials of this model against this reference."""
    images: int
    seed: int
    cores: int
    first: Sampling
    """What every process warms up with, by two images, so that its first trial is no slower."""

    def path(self, sampling: Sampling) -> UPath:
        """Return the result file of one trial."""
        return location(self.folder) / f"{trial_identity(sampling, self.images, self.seed)}.json"


@dataclass(frozen=True)
class Measurement:
    """A function of a setting: its numbers, found or made."""

    work: Work

    def __call__(self, sampling: Sampling) -> dict[str, float]:
        """Return the numbers of a setting, and its seconds an image."""
        path = self.work.path(sampling)
        trial = read_trial(path) if path.exists() else _measured(self.work, sampling)
        return {**trial.numbers, SECONDS: trial.seconds_per_image}


def read_trial(path: UPath) -> Trial:
    """Read what a trial left."""
    return from_json(path.read_text(), Trial, str(path))


def time_alone(work: Work, settings: list[Sampling]) -> list[float]:
    """Return the seconds an image of sampler and decoder, one setting after the other, each warmed up by a batch."""
    generator = _generator(replace(work, images=0))
    return [min(_timed(generator, work, sampling) for _ in range(2)) for sampling in settings]


def timed_batch(work: Work) -> int:
    """Return how many images are drawn at once."""
    return min(BATCH, work.images)


def _measured(work: Work, sampling: Sampling) -> Trial:
    generator, (extractor, real) = _generator(replace(work, images=0)), _against(work.reference)
    folder = location(work.folder) / trial_identity(sampling, 0, work.seed)
    found, start = find_ranges(folder), time.monotonic()
    spans, missing = cover(found, work.images, BATCH)
    speed = 0.0
    for span in missing:
        began = time.monotonic()
        images = generator.draw(generator.labels(span), span, work.seed, sampling)
        speed = (time.monotonic() - began) / len(span)
        features, logits = extractor.layers(images)
        shown = images if span.start == 0 else images[:0]
        write_drawn(range_path(folder, span), Drawn(features, logits, _NO_CLASSES, shown))
    parts = [found.get(span) or read_range(folder, span) for span in spans]
    drawn = merged([part for part in parts if part is not None]).first(work.images)
    of = feature_set(drawn, generator.card.model.num_classes)
    trial = Trial(
        label=label(sampling, generator.card.model.head), sampling=sampling, images=work.images, seed=work.seed,
        numbers={
            frechet.NAME: round(frechet.frechet_distance(of.statistics, real), 4),
            ERROR: round(frechet_error(of.features, real.mean, real.covariance), 4),
        },
        seconds=round(time.monotonic() - start, 2),
        seconds_per_image=speed or _timed(generator, work, sampling),
    )  # fmt: skip
    path = work.path(sampling)
    picture = sample_grid(drawn.shown.__getitem__, len(drawn.shown), generator.card.classes)
    picture.save(Path(str(path)).with_suffix(".png"))
    write_json(path, canonical(trial))
    return trial


def _timed(generator: Generator, work: Work, sampling: Sampling) -> float:
    span = range(timed_batch(work))
    start = time.monotonic()
    generator.draw(generator.labels(span), span, work.seed, sampling)
    return (time.monotonic() - start) / len(span)


@lru_cache(maxsize=1)
def _generator(work: Work) -> Generator:
    """Return the model, warmed up; loaded once a process, which Tune reuses for its next trial."""
    generator = Generator(work.subject.model, work.subject.weights, use_ema=work.subject.use_ema, cores=work.cores)
    generator.draw(generator.labels(range(2)), range(2), 0, work.first)
    return generator


@lru_cache(maxsize=1)
def _against(reference: str) -> tuple[Extractor, Statistics]:
    """Return what images are measured with, loaded once a process."""
    real = read_reference(location(reference))
    return Extractor(real.about.features), real.set.statistics
