"""Features of sets of images -> numbers with error bars, and the page that shows them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from upath import UPath

from evaluate.conditions import Conditions
from evaluate.metrics.sets import FeatureSet
from evaluate.metrics.table import errors, numbers
from evaluate.reference import RealFeatures
from evaluate.results import EvaluationResult, Likelihood, ReferenceResult
from infra.console import stage


class Clock:
    """Seconds of wall time by part."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add what a block takes."""
        began = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - began

    def rounded(self) -> dict[str, float]:
        """Return the seconds to milliseconds."""
        return {part: round(of, 3) for part, of in self.seconds.items()}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Sets of images to measure against real ones, and what a page shows beside the numbers."""

    real: RealFeatures
    floor: RealFeatures | None
    samples: FeatureSet
    untrained: FeatureSet | None = None
    classes: tuple[str, ...]
    shown: Mapping[int, np.ndarray]
    """Samples uint8 (H, W, 3) by index."""
    precision: str
    seconds: Mapping[str, float]
    likelihood: Likelihood = field(default_factory=Likelihood)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the result that say what was measured."""


def finish(measured: Measured, out: UPath) -> EvaluationResult:
    """Return the numbers, and leave report.html in `out`, where the sample grid lies already."""
    real, clock = measured.real, Clock(measured.seconds)
    sets = {"samples": measured.samples, "untrained": measured.untrained}
    with clock.timing("numbers"):
        found = {name: numbers(of, real.set) for name, of in sets.items() if of is not None}
        found |= {"heldout": measured.floor.numbers_against(real)} if measured.floor else {}
    with clock.timing("errors"):
        bars = errors(measured.samples, real.set, found["samples"])
    likely = measured.likelihood
    images = len(measured.samples.features)
    conditions = conditions_against(real.about, images, measured.precision)
    result = EvaluationResult(
        metric=conditions.title, numbers={**found["samples"], **likely.numbers},
        errors={**bars, **likely.errors}, likelihood=likely.told, floor=found.get("heldout", {}),
        ceiling=found.get("untrained", {}), conditions=conditions,
        heldout_images=measured.floor.about.images if measured.floor else 0,
        rank_deficient=conditions.is_rank_deficient, seconds=clock.rounded(), **measured.about,
    )  # fmt: skip
    with clock.timing("page"):
        from evaluate.report.page import Findings, write_report  # matplotlib takes a second to import

        findings = Findings(
            result=result, classes=measured.classes, generated=measured.samples, shown=measured.shown, real=real,
            heldout=measured.floor.set if measured.floor else None,
        )  # fmt: skip
        write_report(findings, out)
    result = replace(result, seconds=clock.rounded())
    stage("evaluation", told(result, images))
    if real.about.lacking:
        stage("evaluation", real.about.lacking)
    return result


def told(result: EvaluationResult, images: int) -> str:
    """Return a line that says where the time went."""
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in result.seconds.items())
    share = "" if result.overhead is None else f"; all but drawing {result.overhead:.1%}"
    return f"{images} images: {parts}{share}"


def conditions_against(reference: ReferenceResult, images: int, precision: str) -> Conditions:
    """Return the conditions of numbers of so many images, drawn in this precision, against a reference."""
    return Conditions(
        extractor=reference.features.name, layer=reference.features.network.layer,
        dimension=reference.features.network.dimension,
        extractor_weights=reference.extractor_weights, image_size=reference.image_size, images=images,
        reference=reference.digest, reference_images=reference.images, precision=precision,
    )  # fmt: skip
