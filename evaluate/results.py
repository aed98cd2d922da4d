"""What the steps reference and evaluation return. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Features, Sampling
from evaluate.metrics import frechet
from infra.result import Report, Result

GRID = "grid.png"


@dataclass(frozen=True, kw_only=True)
class ReferenceResult(Result):
    """What a reference is made of: conditions of every number that is measured against it."""

    images: int
    digest: str
    """Of the source's listing, 16 digits."""
    image_size: int
    features: Features
    extractor_weights: str
    """sha256, 16 digits."""
    kept_features: int
    """Images whose own features are kept: a random subset."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Result):
    """Numbers of a model, by metric, with all that they depend on."""

    metric: str
    """Name of the Fréchet distance: FID only where it is one."""
    numbers: dict[str, float]
    """Of the generated images."""
    floor: dict[str, float]
    """Of held-out real images, where there are any."""
    ceiling: dict[str, float]
    """Of the untrained model's images, where they were asked for."""
    conditions: Conditions
    heldout_images: int
    rank_deficient: bool
    """Fewer images than features: compare only with numbers of as many images."""
    sampling: Sampling
    seed: int
    ema: bool
    """Averaged weights, or the raw ones."""

    @property
    def fd(self) -> float:
        """The Fréchet distance, by which models are ranked."""
        return self.numbers[frechet.NAME]

    def headline(self) -> str:
        """Return the distance beside its anchors."""
        beside = [("held-out real", self.floor), ("untrained", self.ceiling)]
        anchors = [f"{name} {numbers[frechet.NAME]:g}" for name, numbers in beside if numbers]
        return ", ".join([f"{self.metric} {self.fd:g}", *anchors])

    def report(self, path: UPath) -> Report:
        """Return the numbers, their conditions as tags, and the sample grid."""
        anchors = {"heldout": self.floor, "untrained": self.ceiling}
        return Report(
            metrics={
                **self.numbers,
                **{f"{name}_{of}": value for of, numbers in anchors.items() for name, value in numbers.items()},
            },
            tags={
                "metric": self.metric,
                "rank_deficient": json.dumps(self.rank_deficient),
                **{f"condition.{name}": str(value) for name, value in asdict(self.conditions).items()},
            },
            pictures={"samples/grid": path / GRID},
            for_parent=True,
        )
