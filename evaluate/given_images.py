"""Images that any code made -> the same features, logits and classes that drawn ones are kept as, and the same numbers.

shards -> images uint8 (n, H, W, 3), decoded on CPU tasks and taken as they are -> features (n, D), a file for each
group of shards. An image that cannot be read, or has another size, is no sample: nothing is measured without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.util import ActorPool
from upath import UPath

from evaluate.config import Evaluate
from evaluate.decoding import Decoding, Group, groups_of
from evaluate.drawn import GRID_ROWS, Drawn, merged, read_drawn, write_drawn
from evaluate.features import Extractor
from evaluate.finish import Clock, Measured, finish
from evaluate.grid import sample_grid
from evaluate.measure import feature_set
from evaluate.networks import Features
from evaluate.reference import read_reference
from evaluate.results import GRID, EvaluationResult
from infra.actors import actors
from infra.cluster import Compute, connected
from infra.console import Progress, stage
from infra.errors import InputError
from infra.storage import location
from tokenize_jobs.sources.crop import BadImage, decode
from tokenize_jobs.sources.layouts import LAYOUTS
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.shard import Sample, Shard

PRECISION = "given"
"""What conditions say of the precision of images that were given."""
_BATCH, _MOST_NAMED = 64, 3


@dataclass(frozen=True)
class _Work:
    """What every worker needs to know."""

    decoding: Decoding
    config: Evaluate
    features: Features
    folder: str
    workers: int

    def path(self, index: int) -> UPath:
        return location(self.folder) / f"{index:04d}.npz"


def side_of(listing: Listing) -> int:
    """Return the pixels of a side of the first image. Raises InputError when it cannot be read, or is no square."""
    sample = next(_all_samples(listing), None)
    if sample is None:
        raise InputError(f"{listing.root}: holds no image")
    try:
        if sample.fault:
            raise BadImage(sample.fault)
        width, height = decode(sample.content).size
    except BadImage as error:
        raise InputError(f"{listing.root}: {sample.key} {error}") from None
    if width != height:
        raise InputError(f"{listing.root}: {sample.key} is {width}x{height} pixels; squares are measured")
    return width


def evaluate_images(
    config: Evaluate, listing: Listing, reference: UPath, heldout: UPath | None, out: UPath, compute: Compute
) -> EvaluationResult:
    """Measure all images of a source as they are; leaves the sample grid and report.html in `out`.

    An interrupted call goes on in `out`. Raises InputError for images that cannot be read or have another size than
    the reference, naming the first, for fewer than two, and for weights of a network that are missing.
    """
    real = read_reference(reference)
    floor = None if heldout is None else read_reference(heldout)
    if judges(config, listing):
        config.classifier.check(len(listing.classes))
    elif config.classifier.features is not None:
        stage("evaluation", "no class accuracy: the images have no classes")
    drawn = _measured(config, listing, real.about.features, real.about.image_size, out, compute)
    if len(drawn.features) < 2:
        raise InputError(f"{listing.root}: holds {len(drawn.features)} images; two are the least that can be measured")
    drawn, classes = _labelled_or_not(drawn, listing)
    shown = _leave_grid(drawn, listing, classes, 0 if config.keep == "none" else config.grid_columns, out)
    seconds = dict(zip(("reading", "features"), drawn.seconds.sum(0).tolist(), strict=True))
    measured = Measured(
        real=real, floor=floor, samples=feature_set(drawn, len(classes)), classes=classes, shown=shown,
        precision=PRECISION, seconds=seconds,
        about={"classifier": config.classifier.told if judges(config, listing) else ""},
    )  # fmt: skip
    return finish(measured, out)


def _labelled_or_not(drawn: Drawn, listing: Listing) -> tuple[Drawn, tuple[str, ...]]:
    """Return the images with their classes, or none where no image has a label. Raises InputError for a mixture."""
    without = int((drawn.labels < 0).sum())
    if 0 < without < len(drawn.labels):
        raise InputError(
            f"{listing.root}: {without} of {len(drawn.labels)} images have no label; give all one, or none"
        )
    if without or len(listing.classes) < 2:
        return replace(drawn, labels=np.zeros_like(drawn.labels), judged=drawn.judged[:0]), listing.classes[:1] or ("",)
    return drawn, listing.classes


def judges(config: Evaluate, listing: Listing) -> bool:
    """Tell whether the classes of these images can be judged: there is a classifier, and they have classes."""
    return config.classifier.features is not None and len(listing.classes) > 1


def _measured(config: Evaluate, listing: Listing, features: Features, size: int, out: UPath, compute: Compute) -> Drawn:
    """Return all images as they are kept, in the order of the source, whatever the workers."""
    groups = groups_of(listing, 0)
    progress, images, faults = Progress("evaluation", len(groups), "groups of shards"), 0, list[str]()
    with connected(compute) as cluster:
        workers = replace(cluster.generate, count=min(cluster.generate.count, len(groups)))
        decoding = Decoding.on(workers, replace(listing, shards=()), size)
        work = _Work(decoding, config, features, str(out / "features"), workers.count)
        cpus = decoding.worker_cpus(workers.gpus)
        with actors(_Measurer, work, count=workers.count, cpus=cpus, gpus=workers.gpus) as made:
            rows = ActorPool(made).map_unordered(lambda worker, group: worker.__call__.remote(group), groups)
            for done, row in enumerate(rows, 1):
                images, faults = images + row["images"], faults + row["faults"]
                progress.update(done, f", {images} images")
    if faults:
        first = "; ".join(sorted(faults)[:_MOST_NAMED])
        raise InputError(
            f"{listing.root}: {len(faults)} images cannot be measured; mend or remove them, so that what is measured "
            f"is what was made. First: {first}"
        )
    parts = [read_drawn(work.path(group.index)) for group in groups]
    if any(part is None for part in parts):
        raise RuntimeError(f"{out}: features of some images were lost; run it again")
    whole = [part for part in parts if part is not None]
    drawn = merged([part for part in whole if len(part.features)] or whole[:1])
    if len(drawn.features) != images:
        raise RuntimeError(f"{out}: features of {len(drawn.features)} images, not of {images}; run it again")
    return drawn


class _Measurer:
    """One worker: extractor and classifier, and the tasks that decode for it."""

    def __init__(self, work: _Work) -> None:
        torch.set_num_threads(work.decoding.cores)
        self.work, self.extractor = work, Extractor(work.features)
        judge = work.config.classifier.features if judges(work.config, work.decoding.listing) else None
        same = judge is not None and (judge.name, judge.digest) == (work.features.name, work.features.digest)
        self.judge = None if judge is None else self.extractor if same else Extractor(judge)

    def __call__(self, group: Group) -> dict[str, Any]:
        path, faults = self.work.path(group.index), list[str]()
        drawn = read_drawn(path)
        if drawn is None:
            drawn, faults = self._measure(group)
            if not faults:
                write_drawn(path, drawn)
        return {"images": len(drawn.features), "faults": faults}

    def _measure(self, group: Group) -> tuple[Drawn, list[str]]:
        """Return the images of a group, and what is wrong with those that cannot be measured."""
        parts, faults, clock = [], list[str](), Clock({})
        batches = self.work.decoding.batches(group, _labelled)
        while True:
            with clock.timing("reading"):
                _, (images, labels, wrong) = next(batches, (0, (None, None, [])))
            faults += wrong
            if images is None:
                break
            if len(images) and not faults:
                with clock.timing("features"):
                    parts.append(self._kept(images, labels))
        seconds = [[clock.seconds.get(part, 0.0) / self.work.workers for part in ("reading", "features")]]
        whole = merged(parts) if parts else _nothing(self.work.decoding.image_size)
        return replace(whole, seconds=np.array(seconds)), faults

    def _kept(self, images: np.ndarray, labels: np.ndarray) -> Drawn:
        features, logits = self.extractor.layers(images)
        judged = np.empty(0, np.int64)
        if self.judge is not None:
            judged = (logits if self.judge is self.extractor else self.judge.layers(images)[1]).argmax(1)
        return Drawn(features, logits, judged, images[:0], labels=labels)


def _nothing(size: int) -> Drawn:
    return Drawn(
        np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), np.empty(0, np.int64),
        np.empty((0, size, size, 3), np.uint8),
    )  # fmt: skip


def _labelled(
    listing: Listing, shard: Shard, size: int, _most: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Yield a shard's images uint8 (n, size, size, 3), their labels (n,), and what is wrong with others."""
    images, labels, faults = list[np.ndarray](), list[int](), list[str]()
    for sample in _samples(listing, shard):
        try:
            images.append(_as_it_is(sample, size))
            labels.append(int(sample.label))
        except BadImage as error:
            faults.append(f"{sample.key} {error}")
        if len(images) == _BATCH:
            yield np.stack(images), np.array(labels), faults
            images, labels, faults = [], [], []
    if images or faults:
        pixels = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
        yield pixels, np.array(labels, np.int64), faults


def _all_samples(listing: Listing) -> Iterator[Sample]:
    return (sample for shard in listing.shards for sample in _samples(listing, shard))


def _samples(listing: Listing, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard in their order, with the numbers of their classes, or -1 where they have none."""
    numbers, count = {name: number for number, name in enumerate(listing.classes)}, len(listing.classes)
    for sample in LAYOUTS[listing.format].read(location(listing.root), shard, lambda _: True, listing.labels.name):
        label = listing.labels.of(sample.key, sample.label, numbers) if count else -1
        strange = isinstance(label, str) or label >= count
        yield (
            replace(sample, fault=f"has the label {label}, which is no class")
            if strange and not sample.fault and count
            else (replace(sample, label=label))
        )


def _as_it_is(sample: Sample, size: int) -> np.ndarray:
    if sample.fault:
        raise BadImage(sample.fault)
    image = decode(sample.content)
    if image.size != (size, size):
        raise BadImage(f"is {image.width}x{image.height} pixels, others are {size}x{size}")
    return np.asarray(image)


def _leave_grid(
    drawn: Drawn, listing: Listing, classes: tuple[str, ...], columns: int, out: UPath
) -> dict[int, np.ndarray]:
    """Write the first images of each of the first classes as the sample grid; return them by their index."""
    labels = [label for label in range(len(classes)) if (drawn.labels == label).any()][:GRID_ROWS]
    rows = [np.flatnonzero(drawn.labels == label)[:columns].tolist() for label in labels]
    images = _chosen(listing, {index for row in rows for index in row})
    if images:
        count, narrow = len(rows), min(map(len, rows))
        names = [classes[label] for label in labels]
        picture = sample_grid(lambda i: images[rows[i % count][i // count]], count * narrow, names, columns)
        picture.save(Path(str(out)) / GRID)
    return images


def _chosen(listing: Listing, indices: set[int]) -> dict[int, np.ndarray]:
    """Return images of a source by their index in its order; it is read no further than to the last of them."""
    found = dict[int, np.ndarray]()
    for index, sample in zip(range(max(indices, default=-1) + 1), _all_samples(listing), strict=False):
        if index in indices:
            found[index] = np.asarray(decode(sample.content))
    return found
