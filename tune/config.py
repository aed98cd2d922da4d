"""What a sweep searches. Imports nothing heavy."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from evaluate.config import DiffusionSteps, Order, Sampling
from infra.errors import InputError
from infra.fingerprint import added, canonical, fingerprint
from train.models.config import Model
from train.models.heads import TRAIN_TIMESTEPS, DiffusionHead, FlowHead, Head, Solver, TemperatureOn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NoSweep:
    """Nothing is searched: the evaluation measures the recipe's own sampling settings."""

    kind: Literal["none"] = "none"
    """none: the recipe's own sampling settings are measured and registered."""


@dataclass(frozen=True, kw_only=True)
class SamplingSweep:
    """Every combination of these settings is one trial; the best one is measured and registered.

    A field without values keeps what the evaluation samples with. Young models are best at guidance far beyond that of
    the published ones.
    """

    kind: Literal["sampling"] = "sampling"
    """sampling: many ways to sample one checkpoint."""
    temperature: tuple[float, ...] = (0.95, 1.0, 1.05)
    """Temperatures to try."""
    temperature_on: tuple[TemperatureOn, ...] = added(default=())
    """What the temperature acts on, to try."""
    cfg_scale: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.0)
    """Guidance scales to try."""
    cfg_schedule: tuple[Literal["linear", "steps", "constant"], ...] = added(default=())
    """Schedules of the guidance to try."""
    ar_steps: tuple[int, ...] = (32, 64)
    """Numbers of autoregressive steps to try."""
    diffusion_steps: tuple[int, ...] = added(default=())
    """Numbers of diffusion steps to try, the same in every autoregressive step."""
    step_schedules: tuple[tuple[int, int], ...] = ()
    """Diffusion steps in the first and the last autoregressive step, to try beside those of --tune.diffusion-steps."""
    order: tuple[Order, ...] = added(default=())
    """Orders of generation to try."""
    solver: tuple[Solver, ...] = added(default=())
    """Solvers of the head's process to try."""
    max_timestep: tuple[int, ...] = added(default=())
    """Timesteps to try starting the diffusion at."""
    top_k: tuple[int, ...] = added(default=())
    """Numbers of the likeliest codes to draw among, to try."""
    top_p: tuple[float, ...] = added(default=())
    """Shares of the probability to draw among, to try."""
    search: Literal["grid", "optuna"] = added(default="grid")
    """grid: every combination, or a random choice of so many trials; optuna: trials chosen for a small distance and few
    seconds an image."""
    trials: int = added(default=0)
    """Most trials; 0 tries every combination."""
    widen: int = added(default=0)
    """Most trials more, of temperatures and guidance scales beyond the ends that are not worse than the best beyond
    error."""
    minutes: float = added(default=0.0)
    """Minutes after which no trial is begun any more, but for the finalists; 0 sets no limit."""
    images: int = 10_000
    """Images drawn in each trial."""
    finalists: int = 3
    """How many of the best trials are measured again with more images, which decides; 0 for none."""
    final_images: int = 50_000
    """Images drawn of each finalist."""
    seed: int = 0
    """Seed of the images, the same for all trials, and of the choice of trials."""

    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """Return the values to try of each sampling setting that is searched."""
        steps = [(number, number) for number in self.diffusion_steps] + list(self.step_schedules)
        values = {
            "temperature": self.temperature, "cfg_scale": self.cfg_scale, "ar_steps": self.ar_steps,
            "diffusion_steps": tuple(DiffusionSteps(first=first, last=last) for first, last in steps),
            "cfg_schedule": self.cfg_schedule, "order": self.order, "solver": self.solver,
            "max_timestep": self.max_timestep, "temperature_on": self.temperature_on,
            "top_k": self.top_k, "top_p": self.top_p,
        }  # fmt: skip
        return {name: of for name, of in values.items() if of}

    def settings(self, base: Sampling) -> list[Sampling]:
        """Return every combination, each once."""
        axes = self.axes()
        found = [
            effective(replace(base, **dict(zip(axes, of, strict=True)))) for of in itertools.product(*axes.values())
        ]
        return list({fingerprint(canonical(sampling)): sampling for sampling in found}.values())

    def planned(self, base: Sampling) -> list[Sampling]:
        """Return the sampling of each trial: all combinations, or as many as `trials` says, chosen at random.

        What Optuna chooses among is every combination.
        """
        every = self.settings(base)
        return every if self.search == "optuna" else _chosen(every, self.trials, self.seed)

    def count(self, base: Sampling) -> int:
        """Return the number of trials, without those beyond the ends of ranges."""
        return self.trials if self.search == "optuna" else len(self.planned(base))

    def check(self, model: Model, base: Sampling) -> None:
        """Raise InputError for a space that is empty or contradicts itself, and for settings `model` cannot take."""
        axes = self.axes()
        if not axes:
            raise InputError(
                "--tune searches nothing: give values to try, as --tune.temperature 0.9 1.0, or take --tune.kind none"
            )
        for name, values in axes.items():
            if len({repr(value) for value in values}) < len(values):
                raise InputError(f"--tune.{name.replace('_', '-')} names a value twice")
        self._check_budget()
        if len(self.temperature) > 1 and all(effective(sampling).temperature == 1 for sampling in self.settings(base)):
            raise InputError(
                "--tune.temperature has no effect: of the solvers only 'ancestral' adds noise; with "
                "--tune.temperature-on prediction it acts on all"
            )
        if (self.diffusion_steps or self.step_schedules) and not denoises(model.head):
            raise InputError(
                f"--tune.diffusion-steps has no effect: a {model.head.kind} head runs no process backwards"
            )
        if len(self.temperature) > 1 and not (denoises(model.head) or model.head.has_density):
            raise InputError(
                f"--tune.temperature has no effect: a {model.head.kind} head draws from no distribution; "
                "take one value, or --tune.kind none"
            )
        if wrong := [start for start in self.max_timestep if not 0 <= start < TRAIN_TIMESTEPS]:
            raise InputError(f"--tune.max-timestep {wrong[0]} must be from 0 to {TRAIN_TIMESTEPS - 1}")
        for sampling in self.settings(base):
            sampling.check(model)

    def _check_budget(self) -> None:
        limits = {"trials": self.trials, "widen": self.widen, "minutes": self.minutes, "finalists": self.finalists}
        for name, value in limits.items():
            if value < 0:
                raise InputError(f"--tune.{name} {value} is below 0; 0 sets no limit")
        if self.images < 2:
            raise InputError(f"--tune.images {self.images}: a distance takes at least two images")
        if self.search == "optuna" and not self.trials:
            raise InputError("--tune.search optuna has no end of its own: say how many --tune.trials")
        if self.widen and len(self.temperature) < 2 and len(self.cfg_scale) < 2:
            raise InputError(
                "--tune.widen: give at least two values of --tune.temperature or --tune.cfg-scale to widen"
            )
        if self.finalists and self.final_images <= self.images:
            raise InputError(
                f"--tune.final-images {self.final_images} is no more than --tune.images {self.images}: ask for more, "
                "or for --tune.finalists 0"
            )


def denoises(head: Head) -> bool:
    """Tell whether a head runs a process backwards: others have no diffusion steps."""
    return isinstance(head, DiffusionHead | FlowHead)


def effective(sampling: Sampling) -> Sampling:
    """Return the same sampling with what has no effect in it at its default: of such settings one trial is enough."""
    default = Sampling()
    if sampling.cfg_scale == 1:
        sampling = replace(sampling, cfg_schedule=default.cfg_schedule)
    if sampling.solver != "ancestral" and sampling.temperature_on == "noise":
        sampling = replace(sampling, temperature=default.temperature)
    if sampling.temperature == 1:
        sampling = replace(sampling, temperature_on=default.temperature_on)
    return sampling


@dataclass(frozen=True, kw_only=True)
class TrainingSweep:
    """What sweeps of trainings have in common: which are tried, which are stopped early, how they are measured."""

    trials: int = added(default=0)
    """Most trainings, of more combinations a choice by the seed; 0 tries all."""
    reduction: int = added(default=3)
    """Of the trainings that come to the same step, about one in so many goes on (asynchronous halving), by the loss on
    held-out images; 0 stops none."""
    grace_steps: int = added(default=0)
    """Gradient steps before a training may be stopped; 0 takes the share reduction^-2 of them, a ninth."""
    images: int = 10_000
    """Images drawn of each trained model."""
    seed: int = 0
    """Seed of the images, the same for all trials, and of the choice of trials."""

    def fields(self) -> list[dict[str, Any]]:
        """Return, for each combination, the recipe's fields that it replaces, by dotted name."""
        raise NotImplementedError

    def planned(self) -> list[dict[str, Any]]:
        """Return the fields of each trial. Raises InputError for a space or a budget that makes no sense."""
        for name in ("trials", "reduction", "grace_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"--tune.{name.replace('_', '-')} {getattr(self, name)} is below 0")
        if self.reduction == 1:
            raise InputError("--tune.reduction 1 stops none: say 0 for that, or how many of which one goes on")
        if self.images < 2:
            raise InputError(f"--tune.images {self.images}: a distance takes at least two images")
        every = self.fields()
        if not every:
            raise InputError("--tune searches nothing: give values to try")
        if len({json.dumps(fields) for fields in every}) < len(every):
            raise InputError("--tune names a value twice")
        return _chosen(every, self.trials, self.seed)


@dataclass(frozen=True, kw_only=True)
class HeadSweep(TrainingSweep):
    """Every combination of these sizes of the head is trained; the recipe's own model is registered."""

    kind: Literal["head"] = "head"
    """head: many sizes of the head, each a training of its own."""
    width: tuple[int, ...] = (256, 512, 1024, 1536)
    """Widths of the head's MLP to try."""
    depth: tuple[int, ...] = (3,)
    """Depths of the head's MLP to try."""
    train_steps: int = 0
    """Gradient steps of each training; 0 takes the recipe's."""

    def fields(self) -> list[dict[str, Any]]:
        """Return, for each combination, the recipe's fields that it replaces, by dotted name."""
        steps = {"train.train_steps": self.train_steps} if self.train_steps else {}
        return [
            {"train.model.head.width": width, "train.model.head.depth": depth, **steps}
            for width, depth in itertools.product(self.width, self.depth)
        ]


@dataclass(frozen=True, kw_only=True)
class FieldSweep(TrainingSweep):
    """Every combination of these values of a recipe's fields is trained; the recipe's own model is registered."""

    kind: Literal["fields"] = "fields"
    """fields: any typed fields of the recipe, each trial a training of its own."""
    space: tuple[str, ...] = ()
    """Fields and their values as JSON, as train.lr=[1e-3,2e-3]; each combination is a trial."""

    def fields(self) -> list[dict[str, Any]]:
        """Return, for each combination, the recipe's fields that it replaces. Raises InputError for a damaged space."""
        axes = dict(_axis(text) for text in self.space)
        if len(axes) < len(self.space):
            raise InputError("--tune.space names a field twice")
        return [dict(zip(axes, of, strict=True)) for of in itertools.product(*axes.values())] if axes else []


def _chosen(every: list[T], count: int, seed: int) -> list[T]:
    """Return all, or so many of them, chosen by the seed and in their order."""
    if not 0 < count < len(every):
        return every
    from infra.seeding import stream  # numpy: not for those who want the flags

    chosen = stream("trials", seed).choice(len(every), count, replace=False)
    return [every[index] for index in sorted(chosen)]


def _axis(text: str) -> tuple[str, list[Any]]:
    name, _, values = text.partition("=")
    try:
        found = json.loads(values)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise InputError(f"--tune.space {text}: write a field and a list of values, as 'train.lr=[1e-3,2e-3]'")
    return name, found
