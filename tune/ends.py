"""Ends of the ranges that were searched: on which sides of the best setting nothing is worse for sure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluate.config import DiffusionSteps, Sampling
from train.models.config import Model
from train.models.heads import TRAIN_TIMESTEPS, DiffusionHead
from tune.config import effective
from tune.results import Trial, ranked

_LEAST = {  # ends of their own: nothing lies below
    "temperature": 0.0, "cfg_scale": 1.0, "ar_steps": 1, "diffusion_steps": 1, "max_timestep": 0, "top_k": 0,
    "top_p": 0.0,
}  # fmt: skip
_WIDENED = ("temperature", "cfg_scale")  # of the others, more costs more, or the model ends them


@dataclass(frozen=True)
class Open:
    """A side of the best value of a numeric setting on which no tried value is worse beyond error."""

    name: str
    best: float
    is_above: bool
    tried: bool
    """Some value was tried there."""
    next: float
    """The value to try next."""

    def __str__(self) -> str:
        """Say it in words, with the flag that searches on."""
        side, extreme, further = ("above", "largest", "larger") if self.is_above else ("below", "smallest", "smaller")
        what = f"none tried {side} it is worse beyond error" if self.tried else f"the {extreme} tried"
        remedy = f"{further} --tune.{self.name.replace('_', '-')}" + " or --tune.widen" * (self.name in _WIDENED)
        return f"{self.name} (best at {self.best:g}, {what}: {remedy})"


def most_of(model: Model) -> dict[str, float]:
    """Return by name the largest value that a model takes of a setting, where it has one: nothing lies above."""
    of_process = {"diffusion_steps": TRAIN_TIMESTEPS} if isinstance(model.head, DiffusionHead) else {}
    return {"ar_steps": model.num_tokens, "top_p": 1.0, "max_timestep": TRAIN_TIMESTEPS - 1, **of_process}


def open_sides(
    trials: Sequence[Trial], best: Sampling, names: Iterable[str], most: Mapping[str, float], *, alike: bool = False
) -> list[Open]:
    """Return the open sides of the settings `names`: where a value was tried alone, or is the best, that side first.

    No side is open above the `most` of a setting. What a value is worth is told by the trial that differs from the best
    in it alone; where there is none, by the best one that has it, unless only what is `alike` counts.
    """
    (mine,) = (trial for trial in trials if trial.sampling == best)
    acting = {name: [trial for trial in trials if _acts(name, trial.sampling)] for name in names}
    found = [
        _open(name, of, mine, is_above, limit, alike)
        for name, of in acting.items()
        for is_above, limit in ((False, _LEAST.get(name, -math.inf)), (True, most.get(name, math.inf)))
    ]
    return sorted((side for side in found if side), key=lambda side: side.tried)


def _open(
    name: str,
    trials: Sequence[Trial],
    mine: Trial,
    is_above: bool,  # noqa: FBT001
    limit: float,
    alike: bool,  # noqa: FBT001
) -> Open | None:
    trials = [trial for trial in trials if _number(trial, name) is not None]  # step schedules have no order
    value = _number(mine, name)
    if mine not in trials or value is None:
        return None
    chosen = {number: getattr(t.sampling, name) for t in trials if (number := _number(t, name)) is not None}
    values = sorted(chosen)
    if len(values) < 2:
        return None
    outward = [of for of in values if of > value] if is_above else [of for of in reversed(values) if of < value]
    end, inner = (values[-1], values[-2]) if is_above else (values[0], values[1])
    if end >= limit if is_above else end <= limit:
        return None
    same = {t.sampling: t for t in trials}
    slice_ = {of: same.get(replace(mine.sampling, **{name: chosen[of]})) for of in outward}
    best_with = {_number(trial, name): trial for trial in reversed(ranked(trials))}
    known = [slice_[of] or (None if alike else best_with[of]) for of in outward]
    if any(trial is not None and not trial.is_tied_with(mine) for trial in known):
        return None
    untried = (of for of in outward if slice_[of] is None)
    return Open(name, value, is_above, bool(outward), next(untried, _beyond(name, end, inner)))


def _number(trial: Trial, name: str) -> float | None:
    """Return the value of a setting that has an order: of diffusion steps, where they are as many in every step."""
    value = getattr(trial.sampling, name)
    if isinstance(value, DiffusionSteps):
        return value.first if value.first == value.last else None
    return value if isinstance(value, int | float) else None


def _beyond(name: str, end: float, inner: float) -> float:
    """Return the value beyond an end: as many times the end as that is of the one beside it."""
    return max(float(f"{end * (end / inner if inner else 2.0):.3g}"), _LEAST.get(name, -math.inf))


def _acts(name: str, sampling: Sampling) -> bool:
    """Tell whether a setting has an effect: a temperature on noise that a solver does not add has none."""
    return name != "temperature" or sampling.solver == "ancestral" or sampling.temperature_on == "prediction"


def beyond(trials: Sequence[Trial], names: Iterable[str]) -> list[Sampling]:
    """Return what to try next: the best trial with the next temperature, or guidance scale, on each open side."""
    best, tried = ranked(trials)[0].sampling, {trial.sampling for trial in trials}
    sides = open_sides(trials, best, [name for name in names if name in _WIDENED], {}, alike=True)
    further = [effective(replace(best, **{side.name: side.next})) for side in sides]
    return [sampling for sampling in further if sampling not in tried]
