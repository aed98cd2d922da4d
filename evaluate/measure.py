"""Draws and measures in one pass over one pool of workers: ranges of a model's images, and shards of real ones.

a range of image indices | a shard -> images uint8 (n, H, W, 3) -> features (n, D) -> FeatureSums of each set of images
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data

from evaluate.config import Features, Generate
from evaluate.features import Extractor
from evaluate.metrics.frechet import FeatureSums
from evaluate.sampling.generate import Generator, part_path, read_images, write_images
from infra.cluster import Compute, connected
from infra.console import Progress, stage
from infra.errors import InputError
from infra.storage import location
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import cropped_images


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The sets of images to measure, by name, and what drawing and cropping them takes."""

    models: Mapping[str, str]
    """Model directories to draw from."""
    real: Mapping[str, Listing]
    """Sources of real images."""
    weights: TokenizerFile
    generate: Generate
    features: Features
    image_size: int
    most_real: int
    """Real images of each source, evenly from its shards; 0 for all."""
    out: str
    """Each model's images are kept below out/<name>, and not drawn again."""

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yield the units of work in order: ranges of image indices, then shards of up to `most` images each."""
        config = self.generate
        for name in self.models:
            for start in range(0, config.images, config.batch_size):
                yield {"of": name, "start": start, "stop": min(start + config.batch_size, config.images)}
        for name, source in self.real.items():
            each, rest = divmod(self.most_real, len(source.shards))
            for index in range(len(source.shards)):
                most = each + (index < rest)
                if most or not self.most_real:
                    yield {"of": name, "start": index, "stop": index + 1, "most": most}


def measure(sets: Sets, compute: Compute) -> dict[str, FeatureSums]:
    """Return the feature sums of every set; they do not depend on how many workers there are."""
    parts = [{"index": index, "most": 0, **part} for index, part in enumerate(sets.parts())]
    to_draw = len(sets.models) * sets.generate.images
    progress, drawn, sums = Progress("evaluation", to_draw, "images"), 0, dict[str, FeatureSums]()
    progress.update(0)
    with connected(compute) as cluster:
        workers = cluster.generate
        ray.data.DataContext.get_current().enable_progress_bars = False
        measured = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            _Measurer,
            fn_constructor_args=(sets, workers.cpus),
            compute=ray.data.ActorPoolStrategy(size=workers.count),
            num_cpus=workers.cpus, num_gpus=workers.gpus or None,
        )  # fmt: skip
        for part in _in_order(measured.iter_rows()):
            name, features = part["of"], np.frombuffer(part["features"], np.float32)
            if part["count"]:
                found = FeatureSums.of(features.reshape(part["count"], -1))
                sums[name] = sums[name] + found if name in sums else found
            if name in sets.models:
                drawn += part["count"]
                progress.update(drawn)
            if part["index"] + 1 == len(parts) or parts[part["index"] + 1]["of"] != name:
                if name not in sums:
                    raise InputError(f"image source {sets.real[name].root}: holds no usable image")
                stage("evaluation", f"{sets.features.name} features of {sums[name].count} {name} images")
    return sums


def _in_order(parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield parts by their index, holding back those that come early: sums are rounded in one order."""
    early: dict[int, dict[str, Any]] = {}
    following = 0
    for part in parts:
        early[part["index"]] = part
        while following in early:
            yield early.pop(following)
            following += 1


class _Measurer:
    """One worker: the extractor, and the model it last drew from."""

    def __init__(self, sets: Sets, cores: int) -> None:
        self.sets, self.cores = sets, cores
        self.extractor = Extractor(sets.features)
        self.generator: tuple[str, Generator] | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        name, span = part["of"], range(int(part["start"]), int(part["stop"]))
        if name in self.sets.models:
            batches = self._drawn(name, span)
        else:
            source = self.sets.real[name]
            batches = cropped_images(source, source.shards[span.start], self.sets.image_size, int(part["most"]))
        found = [self.extractor(batch).astype(np.float32) for batch in batches]
        return {
            "index": part["index"], "of": name, "count": sum(map(len, found)),
            "features": b"".join(features.tobytes() for features in found),
        }  # fmt: skip

    def _drawn(self, name: str, span: range) -> list[np.ndarray]:
        path = part_path(location(self.sets.out) / name, span)
        if not path.exists():
            if self.generator is None or self.generator[0] != name:
                use_ema = self.sets.generate.use_ema
                model = Generator(self.sets.models[name], self.sets.weights, use_ema=use_ema, cores=self.cores)
                self.generator = (name, model)
            generator, config = self.generator[1], self.sets.generate
            write_images(path, generator.draw(generator.labels(span), span, config.seed, config.sampling))
        return [read_images(path)]
