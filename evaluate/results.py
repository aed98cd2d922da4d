"""What the steps reference and evaluation return. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from evaluate.metrics import frechet
from evaluate.networks import Features
from infra.result import Report, Result

GRID, REPORT = "grid.png", "report.html"


@dataclass(frozen=True, kw_only=True)
class ReferenceResult(Result):
    """What a reference is made of: conditions of every number that is measured against it."""

    images: int
    """0 where a file of statistics does not say."""
    digest: str
    """Of the source's listing or the file of statistics, 16 digits."""
    image_size: int
    features: Features
    extractor_weights: str
    """sha256, 16 digits."""
    kept_features: int
    """Images whose own features are kept: a random subset."""

    @property
    def lacking(self) -> str:
        """What no number says for want of single images, or '' where there are some."""
        if self.kept_features:
            return ""
        return (
            "no precision, recall, kernel distance and nearest images: the reference is a mean and a covariance alone. "
            "Name images beside it: --reference IMAGES --reference.statistics FILE"
        )


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihoods by their names, as means over images."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard errors of the means."""
    told: str = ""
    """Of which images, in how many steps."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Result):
    """Numbers of a model, by metric, with all that they depend on."""

    metric: str
    """Name of the Fréchet distance: FID only where it is one."""
    numbers: dict[str, float]
    """Of the generated images."""
    errors: dict[str, float]
    """Standard errors of some of these: what another seed would change at this number of images."""
    floor: dict[str, float]
    """Of held-out real images, where there are any."""
    ceiling: dict[str, float]
    """Of the untrained model's images, where they were asked for."""
    conditions: Conditions
    heldout_images: int
    rank_deficient: bool
    """Fewer images than features: compare only with numbers of as many images."""
    sampling: Sampling | None = None
    """None for images that were given."""
    seed: int | None = None
    ema: bool | None = None
    """Averaged weights, or the raw ones."""
    train_steps: int | None = None
    """Of the model: 0 where it does not say."""
    training: str = ""
    """Digest of all of the model's training but its length; '' of a model that this pipeline did not train."""
    classifier: str = ""
    """Name and digest of the network that told the classes; '' without one."""
    likelihood: str = ""
    """Of which images the numbers in bits and nats are; '' where the model's head has no density."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part: drawing (or reading images that were given), features, numbers, errors, page."""

    @property
    def fd(self) -> float:
        """The Fréchet distance, by which models are ranked."""
        return self.numbers[frechet.NAME]

    @property
    def overhead(self) -> float | None:
        """Share of the wall time that all but drawing took, or None where nothing was drawn."""
        drawing, total = self.seconds.get("drawing", 0.0), sum(self.seconds.values())
        return (total - drawing) / total if drawing and self.sampling is not None else None

    def headline(self) -> str:
        """Return the distance beside its anchors, and what else was measured."""
        error = f" ± {self.errors[frechet.NAME]:.2g}" if frechet.NAME in self.errors else ""
        beside = [("held-out real", self.floor), ("untrained", self.ceiling)]
        anchors = [f"{name} {of[frechet.NAME]:g}" for name, of in beside if of]
        others = [f"{name} {value:g}" for name, value in self.numbers.items() if name != frechet.NAME]
        deficient = ["rank-deficient"] if self.rank_deficient else []
        return ", ".join([f"{self.metric} {self.fd:g}{error}", *deficient, *anchors, *others])

    def report(self, path: UPath) -> Report:
        """Return the numbers with their errors, their conditions as tags, the sample grid and the page."""
        anchors = {"heldout": self.floor, "untrained": self.ceiling}
        return Report(
            metrics={
                **self.numbers,
                **{f"{name}_error": value for name, value in self.errors.items()},
                **{f"seconds_{name}": value for name, value in self.seconds.items()},
                **{f"{name}_{of}": value for of, numbers in anchors.items() for name, value in numbers.items()},
            },
            tags={
                "metric": self.metric,
                **({"likelihood": self.likelihood} if self.likelihood else {}),
                **self.conditions.tags,
            },
            pictures={"samples/grid": path / GRID} if (path / GRID).exists() else {},
            files=(path / REPORT,),
            for_parent=True,
        )


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult(Result):
    """Numbers of a tokenizer: its reconstructions against the reference, and pair by pair."""

    metric: str
    """Name of the Fréchet distance of the reconstructions: rFID only where it is one."""
    numbers: dict[str, float]
    errors: dict[str, float]
    """Standard errors: what other images of the same source would change at this number of them."""
    conditions: Conditions
    rank_deficient: bool
    tokenizer_kind: str
    tokenizer_hash: str
    lpips_weights: str
    """sha256 of its linear layers, 16 digits; '' without LPIPS."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part."""

    def headline(self) -> str:
        """Return the distance, and what else was measured."""
        told = {
            name: f"{value:g}{f' ± {self.errors[name]:.2g}' if name in self.errors else ''}"
            for name, value in self.numbers.items()
        }
        others = [f"{name} {of}" for name, of in told.items() if name != frechet.NAME]
        return ", ".join(
            [f"{self.metric} {told[frechet.NAME]}", *(["rank-deficient"] if self.rank_deficient else []), *others]
        )

    def report(self, path: UPath) -> Report:
        """Return the numbers with their errors, their conditions as tags, the pairs and the page."""
        return Report(
            metrics={
                **{f"r{name}" if name == frechet.NAME else name: value for name, value in self.numbers.items()},
                **{f"{name}_error": value for name, value in self.errors.items()},
                **{f"seconds_{name}": value for name, value in self.seconds.items()},
            },
            tags={
                "metric": self.metric,
                "tokenizer": f"{self.tokenizer_kind} {self.tokenizer_hash}",
                **self.conditions.tags,
            },
            pictures={"reconstructions/grid": path / GRID} if (path / GRID).exists() else {},
            files=(path / REPORT,),
            for_parent=True,
        )
