"""The pages of sweeps, each one self-contained file, and their figures as PNG and SVG."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from upath import UPath

from evaluate.report.figures import svg_text
from evaluate.report.page import render
from infra.storage import write_atomic
from tune.figures import figures
from tune.results import PAGE, SweepResult, ranked
from tune.training_figures import training_figures
from tune.training_results import TrainingSweepResult


def write_page(result: SweepResult, out: UPath) -> SweepResult:
    """Write report.html and the figures into `out`; returns the result with the figures' names."""
    drawn = figures(result.trials, result.front, result.metric)
    result = replace(result, figures=tuple(drawn))
    write(
        "report.html", drawn, out, title=f"Sweep: {result.deciding_metric} {result.best_fd:.4g}", result=result,
        trials=ranked(result.trials), finalists=ranked(result.finalists),
    )  # fmt: skip
    return result


def write_training_page(result: TrainingSweepResult, out: UPath) -> TrainingSweepResult:
    """Write report.html and the figures into `out`; returns the result with the figures' names."""
    drawn = training_figures(result)
    result = replace(result, figures=tuple(drawn))
    title = f"Trainings: {result.metric} {result.trials[0].fd:.4g}"
    write("trainings.html", drawn, out, title=title, result=result)
    return result


def write(template: str, drawn: Mapping[str, Figure], out: UPath, **values: Any) -> None:  # noqa: ANN401
    """Write the figures as PNG and SVG, and a page that holds them."""
    texts = {name: svg_text(figure) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        write_atomic(out / f"{name}.svg", texts[name].encode())
        figure.savefig(str(out / f"{name}.png"))
    text = render(Path(__file__).with_name(template), figures=texts.items(), **values)
    write_atomic(out / PAGE, text.encode())
