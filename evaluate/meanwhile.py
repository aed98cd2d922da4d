"""A checkpoint measured while its training goes on: a distance at few images and a sample grid, of both its weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.config import Generate
from evaluate.features import Extractor
from evaluate.grid import sample_grid
from evaluate.measure import statistics_of
from evaluate.metrics.frechet import frechet_distance, title
from evaluate.reference import read_reference
from evaluate.sampling.generate import Generator
from infra.storage import location
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.imagenet import spoken

WEIGHTS = {"": True, "_raw": False}
"""Suffix of a number's name -> whether it is of the averaged weights."""


@dataclass(frozen=True)
class Meanwhile:
    """Measures any checkpoint of one training, in one process; images of a seed are the same ones each time."""

    generate: Generate
    weights: TokenizerFile
    reference: str
    out: str
    """Folder of the sample grids."""

    @property
    def title(self) -> str:
        """Return the distance's name with what it holds for."""
        return title(read_reference(location(self.reference)).about.features.name, self.generate.images)

    def __call__(self, model: str, step: int, cores: int = 1) -> dict[str, float]:
        """Return `fd` and `fd_raw` of a model directory; leaves step_00001000.png and step_00001000_raw.png."""
        real = read_reference(location(self.reference))
        extractor, found = Extractor(real.about.features), {}
        for suffix, use_ema in WEIGHTS.items():
            generator = Generator(model, self.weights, use_ema=use_ema, cores=cores)
            images = np.concatenate(list(self._drawn(generator)))
            parts = np.array_split(images, -(-len(images) // self.generate.batch_size))
            features = np.concatenate([extractor(part) for part in parts])
            found[f"fd{suffix}"] = frechet_distance(statistics_of(features), real.set.statistics)
            picture = sample_grid(images.__getitem__, len(images), spoken(generator.card.classes))
            Path(self.out).mkdir(parents=True, exist_ok=True)
            picture.save(Path(self.out) / f"step_{step:08d}{suffix}.png")
        return found

    def _drawn(self, generator: Generator) -> Iterator[np.ndarray]:
        images, at_once = self.generate.images, self.generate.batch_size
        for start in range(0, images, at_once):
            span = range(start, min(start + at_once, images))
            yield generator.draw(generator.labels(span), span, self.generate.seed, self.generate.sampling)
