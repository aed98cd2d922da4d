"""The page of several models: their fronts of speed against quality in one figure, and in a table."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from upath import UPath

from tune.figures import axes_of, errors_of
from tune.page import write
from tune.results import SweepResult

SPEED = "models-speed"


def write_models_page(results: Mapping[str, SweepResult], out: UPath) -> None:
    """Write report.html and the figure into `out`."""
    title = f"{' and '.join(results)}: seconds against distance"
    write("models.html", {SPEED: models_speed(results)}, out, title=title, results=results)


def models_speed(results: Mapping[str, SweepResult]) -> Figure:
    """Return each model's front, timed alone, with the autoregressive steps of its members."""
    at_once = " and ".join(map(str, sorted({result.timed_batch for result in results.values()})))
    figure, axes = axes_of(f"seconds an image (timed alone, {at_once} at once)", next(iter(results.values())).metric)
    for name, result in results.items():
        seconds, distances = zip(*((timed.seconds_per_image, timed.fd) for timed in result.front), strict=True)
        axes.errorbar(seconds, distances, errors_of(result.front), marker="o", markersize=4, capsize=2, label=name)
        for timed in result.front:
            place = (timed.seconds_per_image, timed.fd)
            axes.annotate(f"{timed.sampling.ar_steps}", place, (4, 4), textcoords="offset points", fontsize="x-small")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize="small", title="numbers: autoregressive steps", title_fontsize="x-small")
    return figure
