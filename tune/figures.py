"""Figures of a sweep: the distance against temperature, against diffusion steps, and against seconds an image."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune.results import Timed, Trial, ranked

_SIZE = (6.0, 3.6)


def figures(trials: Sequence[Trial], front: Sequence[Timed], metric: str) -> dict[str, Figure]:
    """Return the figures that these trials have something to show in, by name."""
    found = {"speed": speed(trials, front, metric)}
    for name, of in _by_temperature(trials).items():
        if len({trial.sampling.temperature for trial in of}) > 1:
            found[name] = lines(of, lambda trial: trial.sampling.temperature, name.replace("-", " "), metric)
    if len({diffusion_steps(trial) for trial in trials}) > 1:
        found["diffusion-steps"] = lines(
            trials, diffusion_steps, "diffusion steps (mean of the autoregressive steps)", metric
        )
    return found


def _by_temperature(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return the trials on which a temperature acts, by what it acts on: the two scales are not the same."""
    return {
        "temperature": [t for t in trials if t.sampling.solver == "ancestral" and t.sampling.temperature_on == "noise"],
        "temperature-on-prediction": [
            t for t in trials if t.sampling.temperature_on == "prediction" or t.sampling.temperature == 1
        ],
    }


def diffusion_steps(trial: Trial) -> float:
    """Return the mean of the diffusion steps over the autoregressive ones."""
    sampling = trial.sampling
    return sum(sampling.diffusion_steps.at(step, sampling.ar_steps) for step in range(sampling.ar_steps)) / max(
        sampling.ar_steps, 1
    )


def best_of_each(trials: Sequence[Trial], place: Callable[[Trial], float]) -> dict[float, list[Trial]]:
    """Return by guidance scale the best trial at each place, in order of the places: the best of all other settings."""
    curves: dict[float, list[Trial]] = {}
    for scale in sorted({trial.sampling.cfg_scale for trial in trials}):
        of_scale = ranked([trial for trial in trials if trial.sampling.cfg_scale == scale])
        best = {place(trial): trial for trial in reversed(of_scale)}
        curves[scale] = [best[at] for at in sorted(best)]
    return curves


def lines(trials: Sequence[Trial], place: Callable[[Trial], float], name: str, metric: str) -> Figure:
    """Return the distance against a setting, a line for each guidance scale."""
    figure, axes = axes_of(name, metric)
    for scale, curve in best_of_each(trials, place).items():
        where, distances = [place(trial) for trial in curve], [trial.fd for trial in curve]
        axes.errorbar(where, distances, errors_of(curve), marker="o", markersize=4, capsize=3, label=f"CFG {scale:g}")
    axes.legend(frameon=False, title="best of the other settings", fontsize="small", title_fontsize="small")
    return figure


def speed(trials: Sequence[Trial], front: Sequence[Timed], metric: str) -> Figure:
    """Return the distance against seconds an image: all trials, timed side by side, and the front, timed alone."""
    figure, axes = axes_of("seconds an image (sampler and decoder)", metric)
    seconds = [trial.seconds_per_image for trial in trials]
    style = {"fmt": "o", "markersize": 4, "capsize": 2, "color": "#9ab3cc", "label": "trials, timed side by side"}
    axes.errorbar(seconds, [trial.fd for trial in trials], errors_of(trials), **style)  # pyrefly: ignore
    axes.errorbar(
        [timed.seconds_per_image for timed in front], [timed.fd for timed in front], errors_of(front), fmt="s-",
        color="#b3452c", markersize=5, capsize=2, label="front, timed alone",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize="small")
    return figure


def axes_of(name: str, metric: str) -> tuple[Figure, Axes]:
    """Return an empty figure, and its axes with these names."""
    figure = Figure(figsize=_SIZE, layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set(xlabel=name, ylabel=metric)
    axes.grid(alpha=0.3)
    return figure, axes


class Measured(Protocol):
    """A number with its standard error."""

    @property
    def error(self) -> float: ...


def errors_of(trials: Sequence[Measured]) -> list[float]:
    """Return the lengths of the error bars: none where an error is not known."""
    return [0.0 if math.isnan(trial.error) else trial.error for trial in trials]
