"""Runs trials with Ray Tune: a list of settings one by one, or those that Optuna asks for; each ends with a record."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray.tune
from upath import UPath

from evaluate.config import Sampling
from evaluate.metrics import frechet
from infra.cluster import Workers
from infra.console import Progress
from infra.storage import read_json, write_json
from tune.config import effective

Measure = Callable[[Sampling], Mapping[str, float]]
Config = Mapping[str, int]
"""Of a trial: places in lists."""
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

    def at(self, config: Config) -> Sampling:
        """Return the setting of a trial."""
        return self.settings[config["trial"]]

    def space(self) -> dict[str, Any]:
        """Return Tune's space."""
        return {"trial": ray.tune.grid_search(list(range(len(self))))}

    def options(self) -> dict[str, Any]:
        """Return what Tune is told of the search."""
        return {}

    def callbacks(self) -> list[ray.tune.Callback]:
        """Return none: the list says it all."""
        return []


@dataclass(frozen=True)
class Optuna:
    """Settings that Optuna asks for, one value of each axis, by the numbers of those before; less is better."""

    axes: Mapping[str, tuple[Any, ...]]
    base: Sampling
    trials: int
    seed: int
    record: UPath | None = None
    """File of what was asked for, by which the next driver goes on."""
    told: tuple[tuple[Config, Mapping[str, float]], ...] = ()
    """What a driver before asked for, and its numbers: Optuna learns of it, and it is not run again."""
    begun: tuple[Config, ...] = ()
    """What a driver before only began: it comes first."""
    objectives: tuple[str, ...] = (frechet.NAME, SECONDS)

    def __len__(self) -> int:
        """Return the number of trials that are still to be run."""
        return self.trials - len(self.told)

    def going_on(self, measured: Callable[[Sampling], Mapping[str, float] | None]) -> "Optuna":
        """Return the search that goes on from its record; `measured` has the numbers of what is measured already."""
        asked = read_json(self.record) if self.record is not None and self.record.exists() else []
        found = [(config, measured(self.at(config))) for config in asked]
        told = tuple((config, numbers) for config, numbers in found if numbers is not None)
        begun = [config for config, numbers in found if numbers is None]
        return replace(self, told=told, begun=tuple(of for place, of in enumerate(begun) if of not in begun[:place]))

    def at(self, config: Config) -> Sampling:
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
        storage, name = optuna.storages.InMemoryStorage(), "sweep"
        study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(objectives))
        study.add_trials([
            optuna.trial.create_trial(
                params=dict(config), distributions=space, values=[numbers[of] for of in objectives]
            ) for config, numbers in self.told
        ])  # fmt: skip
        search = OptunaSearch(
            space, metric=objectives, mode=["min"] * len(objectives), storage=storage, study_name=name,
            points_to_evaluate=[dict(config) for config in self.begun],
            seed=self.seed + len(self.told) + len(self.begun),  # with the same, the first draws would come again
        )  # fmt: skip
        return {"search_alg": search, "num_samples": len(self)}

    def callbacks(self) -> list[ray.tune.Callback]:
        """Return what writes the record."""
        return [] if self.record is None else [_Asked(self.record, [config for config, _ in self.told])]


def run_trials(
    search: Listed | Optuna, measure: Measure, workers: Workers, out: UPath, progress: Progress, minutes: float = 0
) -> list[Ended]:
    """Measure the settings of a search and return how the trial of each ended; `out` is Tune's own folder.

    After so many minutes none is begun any more; 0 sets no limit. A failing trial is tried once more in a new process,
    and stops no other.
    """
    if not len(search):
        return []
    deadline = time.time() + minutes * 60 if minutes else math.inf
    trainable = ray.tune.with_parameters(_trial, search=search, measure=measure, deadline=deadline, minutes=minutes)
    results = ray.tune.Tuner(
        ray.tune.with_resources(trainable, workers.resources),
        param_space=search.space(),
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=workers.count, reuse_actors=True, **search.options()),
        run_config=ray.tune.RunConfig(
            name=out.name, storage_path=str(out.parent), verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=1),
            callbacks=[_Told(progress, progress.total - len(search)), *search.callbacks()],
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


class _Asked(ray.tune.Callback):
    """Writes down what was asked for, as soon as it is begun."""

    def __init__(self, record: UPath, asked: Sequence[Config]) -> None:
        self.record, self.asked = record, [*asked]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        if not trial.num_failures:  # a second try was asked for once
            self.asked.append(trial.config)
            write_json(self.record, self.asked)


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
