"""Runs trials with Ray Tune: a list of settings one by one, or those that Optuna asks for; each ends with a record."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray.tune
from upath import UPath

from evaluate.config import Sampling
from evaluate.metrics import frechet
from infra.cluster import Workers
from infra.console import Progress
from tune.config import effective

Measure = Callable[[Sampling], Mapping[str, float]]
SECONDS, STATE, REASON = "seconds_per_image", "state", "reason"


@dataclass(frozen=True)
class Ended:
    """How the trial of a setting ended."""

    sampling: Sampling
    state: Literal["finished", "stopped", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class Listed:
    """Settings that are tried one by one."""

    settings: tuple[Sampling, ...]

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self.settings)

    def at(self, config: Mapping[str, int]) -> Sampling:
        """Return the setting of a trial."""
        return self.settings[config["trial"]]

    def space(self) -> dict[str, Any]:
        """Return Tune's space."""
        return {"trial": ray.tune.grid_search(list(range(len(self))))}

    def options(self) -> dict[str, Any]:
        """Return what Tune is told of the search."""
        return {}


@dataclass(frozen=True)
class Optuna:
    """Settings that Optuna asks for, one value of each axis, by the numbers of those before; less is better."""

    axes: Mapping[str, tuple[Any, ...]]
    base: Sampling
    trials: int
    seed: int
    objectives: tuple[str, ...] = (frechet.NAME, SECONDS)

    def __len__(self) -> int:
        """Return the number of trials."""
        return self.trials

    def at(self, config: Mapping[str, int]) -> Sampling:
        """Return the setting of a trial."""
        return effective(replace(self.base, **{name: of[config[name]] for name, of in self.axes.items()}))

    def space(self) -> dict[str, Any]:
        """Return nothing: it is Optuna's."""
        return {}

    def options(self) -> dict[str, Any]:
        """Return what Tune is told of the search."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        places = {name: list(range(len(values))) for name, values in self.axes.items()}
        space = {name: optuna.distributions.CategoricalDistribution(of) for name, of in places.items()}
        objectives = list(self.objectives)
        search = OptunaSearch(space, metric=objectives, mode=["min"] * len(objectives), seed=self.seed)
        return {"search_alg": search, "num_samples": self.trials}


def run_trials(
    search: Listed | Optuna, measure: Measure, workers: Workers, out: UPath, progress: Progress, minutes: float = 0
) -> list[Ended]:
    """Measure the settings of a search and return how the trial of each ended; `out` is Tune's own folder.

    After so many minutes none is begun any more; 0 sets no limit. A failing trial is tried once more in a new process,
    and stops no other.
    """
    deadline = time.time() + minutes * 60 if minutes else math.inf
    trainable = ray.tune.with_parameters(_trial, search=search, measure=measure, deadline=deadline, minutes=minutes)
    results = ray.tune.Tuner(
        ray.tune.with_resources(trainable, workers.resources),
        param_space=search.space(),
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=workers.count, reuse_actors=True, **search.options()),
        run_config=ray.tune.RunConfig(
            name=out.name, storage_path=str(out.parent), verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=1),
            callbacks=[_Told(progress, progress.total - len(search))],
        ),
    ).fit()  # fmt: skip
    return [_ended(search, result) for result in results]


def _ended(search: Listed | Optuna, result: Any) -> Ended:  # noqa: ANN401
    sampling = search.at(result.config)
    if result.error is not None:
        lines = str(result.error).strip().splitlines()
        return Ended(sampling, "failed", lines[-1] if lines else repr(result.error))
    return Ended(sampling, result.metrics[STATE], result.metrics[REASON])


def _trial(config: dict[str, Any], search: Listed | Optuna, measure: Measure, deadline: float, minutes: float) -> None:
    if time.time() > deadline:
        numbers = dict.fromkeys((frechet.NAME, SECONDS), math.nan)
        ray.tune.report({**numbers, STATE: "stopped", REASON: f"not begun within {minutes:g} minutes"})
        return
    ray.tune.report({**measure(search.at(config)), STATE: "finished", REASON: ""})


class _Told(ray.tune.Callback):
    """Prints a line for finished trials: how many, and the best so far."""

    def __init__(self, progress: Progress, done: int) -> None:
        self.progress, self.done, self.best = progress, done, math.inf

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        distance = trial.last_result.get(frechet.NAME, math.nan)
        self.best = self.best if math.isnan(distance) else min(self.best, distance)
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        self._tell(", one failed")

    def _tell(self, note: str = "") -> None:
        self.done += 1
        best = f", best FD {self.best:.4g}" if math.isfinite(self.best) else ""
        self.progress.update(self.done, best + note)
