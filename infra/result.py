"""What a step returns: a frozen dataclass, which says itself what a person and the tracking server see of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upath import UPath


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Data that a run used, as a tracking server lists it."""

    name: str
    digest: str
    source: str
    profile: str
    context: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the tracking server gets of a step, or of one trial in it."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Beyond the step's config, which is recorded anyway."""
    pictures: Mapping[str, UPath] = field(default_factory=dict)
    """Key in the UI, the same in every run -> PNG file."""
    files: tuple[UPath, ...] = ()
    """Pages and tables to keep with the run."""
    history: UPath | None = None
    """File of JSON lines, each with 'step', 'time' (seconds) and numbers: curves."""
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Name -> (step, value) points, few of them."""
    datasets: tuple[Dataset, ...] = ()
    """Shown by the recipe's run too."""
    for_parent: bool = False
    """Metrics, tags and pictures are shown by the recipe's run too."""
    trials: Mapping[str, tuple[str, "Report"]] = field(default_factory=dict)
    """Identity -> (name, report) of each trial: a child run."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of what steps return. Fields are plain values, or dataclasses of them: stored as JSON, and read back."""

    def headline(self) -> str:
        """Return the line that the console says when the step is done."""
        plain = {name: getattr(self, name) for name in (f.name for f in dataclasses.fields(self))}
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in plain.items()
            if isinstance(value, int | float | str) and value != ""
        )

    def report(self, path: UPath) -> Report:  # noqa: ARG002  results with files say where they are
        """Return what the tracking server gets; `path` is the artifact's directory."""
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Report(
            metrics={k: v for k, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        )
