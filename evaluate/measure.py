"""Draws images and measures their features on one pool of workers; images go from sampler to extractor in memory.

a range of image indices -> images uint8 (n, H, W, 3) -> features (n, D), kept in a file for each range
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from ray.util import ActorPool
from upath import UPath

from evaluate.config import Evaluate, Sampling
from evaluate.drawn import Drawn, cover, find_ranges, is_shown, merged, range_path, read_range, write_drawn, write_shard
from evaluate.features import Extractor, Features
from evaluate.metrics.sets import FeatureSet, FeatureSums, Statistics
from evaluate.sampling.generate import Generator
from infra.actors import actors
from infra.cluster import Compute, connected
from infra.console import Progress
from infra.storage import location
from tokenize_jobs.config import TokenizerFile
from train.card import read_card

_ROWS = 1024  # summed at once, so that sums are rounded in one order whatever the ranges
DRAWING = (
    "evaluate/sampling", "evaluate/config.py", "evaluate/features.py", "evaluate/extractors.py", "evaluate/arrays.py",
    "evaluate/drawn.py", "evaluate/measure.py", "train/models", "train/card.py", "train/checkpoint.py",
    "tokenize_jobs/tokenizers", "tokenize_jobs/tokens", "tokenize_jobs/quantization", "infra/seeding.py",
)  # fmt: skip
"""Code that decides what is kept of generated images."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Images to draw and to measure."""

    model: str
    """Model directory."""
    weights: TokenizerFile
    sampling: Sampling
    config: Evaluate
    features: Features
    folder: str
    """Ranges that lie there are not drawn again."""
    title: str = "images"
    """What the progress line calls them."""

    def is_served_by(self, span: range, drawn: Drawn, classes: int) -> bool:
        """Tell whether all that is to be kept of a range is there: an evaluation before may have kept fewer images."""
        if self.config.keep == "all" and not shard_path(location(self.folder), span).exists():
            return False
        return {*shown(self.config, span, classes)} <= {*drawn.shown_at.tolist()}


def draw(drawing: Drawing, compute: Compute) -> Drawn:
    """Draw what is missing, and return all images, as they are kept; nothing depends on the number of workers."""
    folder, config = location(drawing.folder), drawing.config.generate
    classes = read_card(location(drawing.model)).model.num_classes
    found = {span: kept for span, kept in find_ranges(folder).items() if drawing.is_served_by(span, kept, classes)}
    spans, missing = cover(found, config.images, config.batch_size)
    progress = Progress("evaluation", config.images, drawing.title)
    done = config.images - sum(map(len, missing))
    progress.update(done)
    if missing:
        with connected(compute) as cluster:
            workers = cluster.generate
            workers = replace(workers, count=min(workers.count, len(missing)))
            with actors(_Measurer, drawing, workers.cpus, workers.count, **asdict(workers)) as made:
                for span in ActorPool(made).map_unordered(lambda worker, span: worker.__call__.remote(span), missing):
                    done += len(span)
                    progress.update(done)
    parts = [(span, found.get(span) or read_range(folder, span)) for span in spans]
    whole = merged(
        [part for span, part in parts if part is not None and drawing.is_served_by(span, part, classes)]
    ).first(config.images)
    if len(whole.features) != config.images:
        raise RuntimeError(f"{folder}: features of {len(whole.features)} images, not of {config.images}; run it again")
    return whole


def shown(config: Evaluate, indices: Iterable[int], classes: int) -> list[int]:
    """Return which of these images belong to the sample grid, where one is kept."""
    return [index for index in indices if config.keep != "none" and is_shown(index, classes, config.grid_columns)]


def shard_path(folder: UPath, span: range) -> UPath:
    """Return the shard of a range's images, where all are kept."""
    return folder / "images" / f"{span.start:07d}-{span.stop:07d}.tar"


def feature_set(drawn: Drawn, classes: int) -> FeatureSet:
    """Return images as metrics see them; labels follow from the index unless they were given."""
    labels = drawn.labels if len(drawn.labels) else np.arange(len(drawn.features)) % classes
    logits = drawn.logits if drawn.logits.shape[1] else np.empty((0, 0), np.float32)
    return FeatureSet(statistics_of(drawn.features), drawn.features, logits, labels, drawn.judged)


def statistics_of(features: np.ndarray) -> Statistics:
    """Return mean and covariance of features (N, D), whatever the ranges they came in.

    The mean is torch-fidelity's: summed in float32, row by row, which differs from the rounded one by 4e-6 at 50,000.
    """
    blocks = range(0, len(features), _ROWS)
    sums = [FeatureSums.of(features[start : start + _ROWS]) for start in blocks]
    total = sums[0]
    for following in sums[1:]:
        total += following
    return replace(total.statistics(), mean=features.mean(0))


class _Measurer:
    """One worker: model, extractor and classifier."""

    def __init__(self, drawing: Drawing, cores: int, workers: int) -> None:
        self.drawing, self.config, self.workers = drawing, drawing.config, workers
        self.generator = Generator(
            drawing.model, drawing.weights, use_ema=self.config.generate.use_ema, cores=cores
        )  # fmt: skip
        self.extractor = Extractor(drawing.features)
        judge = self.config.classifier.features
        same = judge is not None and (judge.name, judge.digest) == (drawing.features.name, drawing.features.digest)
        self.judge = None if judge is None else self.extractor if same else Extractor(judge)

    def __call__(self, span: range) -> range:
        seed, began = self.config.generate.seed, time.monotonic()
        images = self.generator.draw(self.generator.labels(span), span, seed, self.drawing.sampling)
        drawn = time.monotonic()
        features, logits = self.extractor.layers(images)
        judged = np.empty(0, np.int64)
        if self.judge is not None:
            found = logits if self.judge is self.extractor else self.judge.layers(images)[1]
            judged = found.argmax(1)
        folder, classes = location(self.drawing.folder), self.generator.card.model.num_classes
        if self.config.keep == "all":
            write_shard(shard_path(folder, span), list(images), span, classes)
        at = np.array(shown(self.config, span, classes), np.int64)
        seconds = np.array([[drawn - began, time.monotonic() - drawn]]) / self.workers
        kept = Drawn(features, logits, judged, images[at - span.start], seconds=seconds, shown_at=at)
        write_drawn(range_path(folder, span), kept)
        return span
