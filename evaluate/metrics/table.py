"""The metrics there are. A new one is a module with `measure` and `errors`, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from evaluate.metrics import accuracy, frechet, inception_score, kernel, precision_recall
from evaluate.metrics.sets import FeatureSet, in_turns

Numbers = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """Numbers of a set of images against a reference, by name; those that cannot be known are left out."""

    measure: Callable[[FeatureSet, FeatureSet], Numbers]
    errors: Callable[[FeatureSet, FeatureSet, Numbers], Numbers]
    """Standard errors of some of them, which are given."""


METRICS = tuple(
    Metric(module.measure, module.errors) for module in (frechet, kernel, precision_recall, inception_score, accuracy)
)
_DIGITS = 6


def numbers(of: FeatureSet, real: FeatureSet) -> Numbers:
    """Return every number that can be known of a set of images."""
    return {name: round(value, _DIGITS) for metric in METRICS for name, value in metric.measure(of, real).items()}


def errors(of: FeatureSet, real: FeatureSet, found: Numbers) -> Numbers:
    """Return the standard errors of these numbers, where they are known."""
    mixed = replace(of, features=of.features[in_turns(of)])
    return {name: round(of, _DIGITS) for metric in METRICS for name, of in metric.errors(mixed, real, found).items()}
