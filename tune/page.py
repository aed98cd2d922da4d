"""The page of a sweep, one self-contained file, and its figures as PNG and SVG."""

from dataclasses import replace
from pathlib import Path

from upath import UPath

from evaluate.report.figures import svg_text
from evaluate.report.page import render
from infra.storage import write_atomic
from tune.figures import figures
from tune.results import PAGE, SweepResult, ranked


def write_page(result: SweepResult, out: UPath) -> SweepResult:
    """Write report.html and the figures into `out`; returns the result with the figures' names."""
    drawn = figures(result.trials, result.front, result.metric)
    texts = {name: svg_text(figure) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        write_atomic(out / f"{name}.svg", texts[name].encode())
        figure.savefig(str(out / f"{name}.png"))
    result = replace(result, figures=tuple(drawn))
    text = render(
        Path(__file__).with_name("report.html"),
        title=f"Sweep: {result.metric} {result.best_fd:.4g}", result=result, figures=texts.items(),
        trials=ranked(result.trials), finalists=ranked(result.finalists),
    )  # fmt: skip
    write_atomic(out / PAGE, text.encode())
    return result
