"""Figures of the page, as SVG text."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

_BINS = 40
_Z = 1.96  # 95 % of a normal distribution


def class_bars(accuracy: Mapping[str, float], overall: float) -> str:
    """Return horizontal bars of classes' accuracies, in the order given, beside the overall one."""
    figure = Figure(figsize=(6, 0.6 + 0.22 * len(accuracy)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(accuracy)), list(accuracy.values()), color="#4878a8")
    axes.set_yticks(range(len(accuracy)), list(accuracy))
    axes.invert_yaxis()
    axes.axvline(overall, color="black", linewidth=1)
    axes.set(xlim=(0, 1), xlabel="accuracy (line: all classes)")
    return svg_text(figure)


def distance_histograms(distances: Mapping[str, Sequence[float]]) -> str:
    """Return histograms of distances to the nearest real image, one a set of images, as shares of each set."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, max(max(of) for of in distances.values()) or 1, _BINS)
    for name, of in distances.items():
        axes.hist(of, edges, weights=np.full(len(of), 1 / len(of)), histtype="step", linewidth=1.5, label=name)
    axes.set(xlabel="distance to the nearest real image", ylabel="share of images")
    axes.legend(frameon=False)
    return svg_text(figure)


def distance_curve(points: Sequence[tuple[int, float, float]], name: str) -> str:
    """Return a curve of (training steps, distance, standard error), with bars of 1.96 errors."""
    steps, distances, errors = zip(*points, strict=True)
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(steps, distances, [_Z * error for error in errors], color="#4878a8", marker="o", capsize=3)
    axes.set(xlabel="training steps", ylabel=name)
    return svg_text(figure)


def histogram(values: np.ndarray, name: str) -> str:
    """Return a histogram of values, called `name`, as shares of all."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, _BINS, weights=np.full(len(values), 1 / len(values)), histtype="step", linewidth=1.5)
    axes.set(xlabel=name, ylabel="share of images")
    return svg_text(figure)


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG element: the same text for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "mar", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
