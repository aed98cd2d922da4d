"""What the step sweep returns. Imports nothing heavy."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from evaluate.metrics import frechet
from infra.fingerprint import canonical, fingerprint
from infra.result import Report, Result
from train.models.heads import DiffusionHead, Head
from tune.config import denoises

TRIALS, PAGE = "trials.json", "report.html"
ERROR = f"{frechet.NAME}_error"
TIED = 2.0
"""Standard errors of a difference within which two numbers are the same."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the sweep, and what it is worth."""

    label: str
    sampling: Sampling
    numbers: dict[str, float]
    """The distance and its standard error."""
    images: int
    seed: int
    seconds: float
    """Of drawing and measuring all its images."""
    seconds_per_image: float = math.nan
    """Of sampler and decoder alone, while other trials may have run beside it."""

    @property
    def identity(self) -> str:
        """What makes it the same trial in another sweep."""
        return trial_identity(self.sampling, self.images, self.seed)

    @property
    def fd(self) -> float:
        """The Fréchet distance."""
        return self.numbers[frechet.NAME]

    @property
    def error(self) -> float:
        """Standard error of the distance."""
        return self.numbers.get(ERROR, math.nan)

    def is_tied_with(self, other: "Trial") -> bool:
        """Tell whether the distances of both differ by less than two standard errors of a difference."""
        return abs(self.fd - other.fd) < TIED * math.hypot(self.error, other.error)

    def report(self, folder: UPath, conditions: Conditions, head: Head) -> Report:
        """Return what the tracking server gets of this trial of a model with this head; its grid lies in `folder`."""
        here = replace(conditions, images=self.images)
        return Report(
            metrics={**self.numbers, "seconds": self.seconds, "seconds_per_image": self.seconds_per_image},
            tags={"metric": here.title, "state": "finished", **here.tags},
            params={**settings(self.sampling, head), "images": self.images},
            pictures={"samples/grid": folder / f"{self.identity}.png"},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A trial without numbers, and why."""

    label: str
    sampling: Sampling
    state: Literal["stopped", "failed"]
    reason: str

    def report(self, head: Head) -> Report:
        """Return what the tracking server gets of this trial: its setting, and why there is no number."""
        return Report(params=settings(self.sampling, head), tags={"state": self.state, "reason": self.reason})


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A member of the front of speed against quality, timed with nothing beside it."""

    label: str
    sampling: Sampling
    fd: float
    seconds_per_image: float
    """Of sampler and decoder, warmed up."""
    error: float = math.nan
    """Standard error of the distance."""


@dataclass(frozen=True, kw_only=True)
class SweepResult(Result):
    """The trials of a sweep, and the settings that won."""

    metric: str
    conditions: Conditions
    """Of the trials."""
    best: Sampling
    best_label: str
    trials: tuple[Trial, ...]
    finalists: tuple[Trial, ...] = ()
    """The best of them, measured again with more images: these decide."""
    tied: tuple[str, ...] = ()
    """Labels of others whose distance is the winner's within error."""
    edges: tuple[str, ...] = ()
    """Ends of ranges that are not worse than the best, in words, and what searches beyond them."""
    front: tuple[Timed, ...] = ()
    """What is best at its speed, fastest first."""
    timed_batch: int = 0
    """Images drawn at once where the front was timed."""
    unfinished: tuple[Unfinished, ...] = ()
    figures: tuple[str, ...] = ()
    """Names of the figures that were drawn."""
    head: Head = field(default_factory=DiffusionHead)
    """The model's, which decides what of a setting is told."""

    @property
    def deciding(self) -> tuple[Trial, ...]:
        """The trials among which the winner is."""
        return self.finalists or self.trials

    @property
    def deciding_metric(self) -> str:
        """Name of the distance of those that decide."""
        return frechet.title(self.conditions.extractor, self.deciding[0].images)

    @property
    def best_fd(self) -> float:
        """The smallest distance of those that decide."""
        return min(trial.fd for trial in self.deciding)

    def headline(self) -> str:
        """Return the winner and its distance, and what is to be doubted."""
        parts = [f"best of {len(self.trials)} trials: {self.deciding_metric} {self.best_fd:g} at {self.best_label}"]
        if self.tied:
            parts.append(f"within error of {len(self.tied)} more")
        if self.edges:
            parts.append(f"no optimum inside the range of {', '.join(self.edges)}")
        ends = Counter(trial.state for trial in self.unfinished)
        return "; ".join([*parts, *(f"{number} {state}" for state, number in ends.items())])

    def report(self, path: UPath) -> Report:
        """Return the best number, the figures, and every trial as a run of its own."""
        named = {**{t.identity: t for t in self.trials}, **{t.identity: t for t in self.finalists}}
        drawn = [(name, path / f"{name}.png") for name in self.figures]
        return Report(
            metrics={f"best_{frechet.NAME}": self.best_fd},
            tags={
                "metric": self.deciding_metric, "best": self.best_label, "edges": ", ".join(self.edges),
                **replace(self.conditions, images=self.deciding[0].images).tags,
            },
            pictures={f"sweep/{name}": file for name, file in drawn},
            files=(path / TRIALS, *((path / PAGE,) if (path / PAGE).exists() else ()),
                   *(path / f"{name}.svg" for name in self.figures)),
            trials={
                **{identity: (_short(trial.sampling), trial.report(path / "trials", self.conditions, self.head))
                   for identity, trial in named.items()},
                **{f"{of.state} {fingerprint(canonical(of.sampling))}": (_short(of.sampling), of.report(self.head))
                   for of in self.unfinished},
            },
        )  # fmt: skip


def trial_identity(sampling: Sampling, images: int, seed: int) -> str:
    """Return what makes it the same trial in another sweep of the same model and reference."""
    return fingerprint([canonical(sampling), images, seed])


def label(sampling: Sampling, head: Head) -> str:
    """Return a setting in words: what a sweep can search of it for a model with this head."""
    parts = [
        f"temperature {sampling.temperature:g}"
        + (" on the prediction" if sampling.temperature_on == "prediction" else ""),
        f"CFG {sampling.cfg_scale:g}" + ("" if sampling.cfg_schedule == "linear" else f" {sampling.cfg_schedule}"),
        f"{sampling.ar_steps} AR"
        + (f" x {sampling.diffusion_steps.label()} diffusion steps" if denoises(head) else " steps"),
    ]
    default = Sampling()
    parts += [value for value in (sampling.solver, sampling.order) if value not in (default.solver, default.order)]
    if sampling.max_timestep is not None:
        parts.append(f"from t {sampling.max_timestep}")
    parts += [f"top-k {sampling.top_k}"] * bool(sampling.top_k) + [f"top-p {sampling.top_p:g}"] * (sampling.top_p != 1)
    return ", ".join(parts)


def settings(sampling: Sampling, head: Head) -> dict[str, Any]:
    """Return what trials are told apart by, few values: the UI lists them all above each trial's picture."""
    default = Sampling()
    rarely = ("temperature_on", "cfg_schedule", "solver", "order", "max_timestep", "top_k", "top_p")
    return {
        "temperature": sampling.temperature, "cfg_scale": sampling.cfg_scale, "ar_steps": sampling.ar_steps,
        **({"diffusion_steps": sampling.diffusion_steps.label()} if denoises(head) else {}),
        **{name: getattr(sampling, name) for name in rarely if getattr(sampling, name) != getattr(default, name)},
    }  # fmt: skip


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials, the smallest distance first."""
    return sorted(trials, key=lambda trial: trial.fd)


def _short(sampling: Sampling) -> str:
    return f"t{sampling.temperature:g} cfg{sampling.cfg_scale:g} ar{sampling.ar_steps}"
