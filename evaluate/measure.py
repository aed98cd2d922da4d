"""Draws and measures in one pass over one pool of workers: ranges of models' images.

a range of image indices -> images uint8 (n, H, W, 3) -> features (n, D) -> FeatureSums of each model's images
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.util import ActorPool

from evaluate.config import Features, Generate, Sampling
from evaluate.features import Extractor
from evaluate.metrics.frechet import FeatureSums
from evaluate.sampling.generate import Generator, part_path, read_images, write_images
from infra.actors import actors
from infra.cluster import Compute, connected
from infra.console import Progress
from infra.storage import location
from tokenize_jobs.config import TokenizerFile


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The sets of images to measure, by name, and what drawing them takes."""

    models: Mapping[str, str]
    """Model directories to draw from."""
    weights: TokenizerFile
    generate: Generate
    sampling: Sampling
    features: Features
    out: str
    """Each model's images are kept below out/<name>, and not drawn again."""

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yield the units of work in order: ranges of image indices."""
        config = self.generate
        for name in self.models:
            for start in range(0, config.images, config.batch_size):
                yield {"of": name, "start": start, "stop": min(start + config.batch_size, config.images)}


def measure(sets: Sets, compute: Compute) -> dict[str, FeatureSums]:
    """Return the feature sums of every set; they do not depend on how many workers there are."""
    parts = list(sets.parts())
    to_draw = len(sets.models) * sets.generate.images
    progress, drawn, sums = Progress("evaluation", to_draw, "images"), 0, dict[str, FeatureSums]()
    progress.update(0)
    with connected(compute) as cluster:
        workers = cluster.generate
        pool = ActorPool(actors(_Measurer, sets, workers.cpus, **asdict(workers)))
        for part in pool.map(lambda worker, part: worker.__call__.remote(part), parts):  # in order: so are sums rounded
            name, features = part["of"], np.frombuffer(part["features"], np.float32)
            found = FeatureSums.of(features.reshape(part["count"], -1))
            sums[name] = sums[name] + found if name in sums else found
            drawn += part["count"]
            progress.update(drawn)
    return sums


class _Measurer:
    """One worker: the extractor, and the model it last drew from."""

    def __init__(self, sets: Sets, cores: int) -> None:
        self.sets, self.cores = sets, cores
        self.extractor = Extractor(sets.features)
        self.generator: tuple[str, Generator] | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        name, span = part["of"], range(int(part["start"]), int(part["stop"]))
        features = self.extractor(self._drawn(name, span)).tobytes()
        return {"of": name, "count": len(span), "features": features}

    def _drawn(self, name: str, span: range) -> np.ndarray:
        path = part_path(location(self.sets.out) / name, span)
        if not path.exists():
            if self.generator is None or self.generator[0] != name:
                use_ema = self.sets.generate.use_ema
                model = Generator(self.sets.models[name], self.sets.weights, use_ema=use_ema, cores=self.cores)
                self.generator = (name, model)
            generator, config = self.generator[1], self.sets.generate
            write_images(path, generator.draw(generator.labels(span), span, config.seed, self.sets.sampling))
        return read_images(path)
