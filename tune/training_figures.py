"""Figures of trainings side by side: the distance against parameters and seconds, and the losses that stopped some."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from tune.figures import axes_of, errors_of
from tune.training_results import Stopped, Trained, TrainingSweepResult


def training_figures(result: TrainingSweepResult) -> dict[str, Figure]:
    """Return the figures that these trainings have something to show in, by name."""
    found = {}
    if any(trial.curve for trial in (*result.trials, *result.stopped)):
        found["losses"] = losses(result)
    if len({trial.parameters for trial in result.trials}) > 1:
        found["parameters"] = distances(
            result.trials, [trial.parameters for trial in result.trials], "parameters", result.metric
        )
    seconds = [trial.seconds_per_image for trial in result.trials]
    found["speed"] = distances(result.trials, seconds, "seconds an image (sampler and decoder)", result.metric)
    return found


def losses(result: TrainingSweepResult) -> Figure:
    """Return the loss on held-out images of every training; where one was stopped, a cross."""
    figure, axes = axes_of("training steps", result.stopping_metric)
    for trial in (*result.trials, *result.stopped):
        _draw_curve(axes, trial)
    axes.legend(frameon=False, fontsize="x-small")
    return figure


def distances(trials: Sequence[Trained], places: Sequence[float], name: str, metric: str) -> Figure:
    """Return the distance of each trained model against a number of it, with error bars and labels."""
    figure, axes = axes_of(name, metric)
    axes.errorbar(
        places, [trial.fd for trial in trials], errors_of(trials), fmt="o", markersize=5, capsize=3, color="#b3452c"
    )
    middle = (min(places) + max(places)) / 2
    for place, trial in zip(places, trials, strict=True):
        offset, side = ((-5, 4), "right") if place > middle else ((5, 4), "left")  # inwards, within the frame
        axes.annotate(trial.label, (place, trial.fd), offset, textcoords="offset points", fontsize="x-small", ha=side)
    return figure


def _draw_curve(axes, trial: Trained | Stopped) -> None:  # noqa: ANN001  matplotlib's
    steps, values = [step for step, _ in trial.curve], [value for _, value in trial.curve]
    is_stopped = isinstance(trial, Stopped)
    (line,) = axes.plot(
        steps, values, linewidth=1.2, linestyle="--" if is_stopped else "-", marker=".",  # a curve may be one point
        label=trial.label + (" (stopped)" if is_stopped else ""),
    )  # fmt: skip
    if is_stopped and steps:
        axes.plot(steps[-1:], values[-1:], "x", color=line.get_color())
