"""An evaluation as one self-contained HTML page: numbers with conditions, samples, classes, nearest real images."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from upath import UPath

from evaluate.conditions import comparable
from evaluate.metrics import accuracy, frechet
from evaluate.metrics.sets import FeatureSet
from evaluate.reference import RealFeatures
from evaluate.report.figures import class_bars, distance_curve, distance_histograms
from evaluate.report.neighbours import MOST, nearest
from evaluate.results import GRID, REPORT, EvaluationResult
from infra.artifact import load
from infra.fingerprint import canonical, flatten
from infra.storage import write_atomic

_ENDS = 10  # best and worst classes
_ROWS, _NEIGHBOURS = 10, 4


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a page shows of an evaluation."""

    result: EvaluationResult
    classes: tuple[str, ...]
    generated: FeatureSet
    shown: Mapping[int, np.ndarray]
    """Samples uint8 (H, W, 3) by index."""
    real: RealFeatures
    heldout: FeatureSet | None


def write_report(findings: Findings, out: UPath) -> None:
    """Write report.html into `out`, where the sample grid lies already."""
    grid = out / GRID
    text = render(
        Path(__file__).with_name("page.html"),
        title=f"{findings.result.metric} {findings.result.fd:.4g}",
        result=findings.result,
        rows=_rows(findings.result),
        lacking=findings.real.about.lacking,
        time=", ".join(f"{part} {of:.1f} s" for part, of in findings.result.seconds.items()),
        conditions=_conditions(findings.result),
        grid=_text(grid.read_bytes()) if grid.exists() else "",
        curve=_curve(findings.result, out),
        **_classes(findings),
        **_nearest(findings),
    )
    write_atomic(out / REPORT, text.encode())


def render(template: Path, **values: Any) -> str:  # noqa: ANN401
    """Return a page of a template, which extends the `base.html` beside this file."""
    folders = (template.parent, Path(__file__).parent)
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template.name).render(**values)


def _rows(result: EvaluationResult) -> list[dict[str, Any]]:
    sets = (result.numbers, result.errors, result.floor, result.ceiling)
    return [
        {
            "name": result.metric if name == frechet.NAME else name.replace("_", " "),
            "cells": [f"{of[name]:.4g}" if name in of else "" for of in sets],
        }
        for name in result.numbers
    ]


def _conditions(result: EvaluationResult) -> list[tuple[str, object]]:
    shown = {**asdict(result.conditions), "held-out images": result.heldout_images}
    if result.sampling is not None:
        weights = "averaged (EMA)" if result.ema else "raw"
        shown |= {"weights": weights, "seed": result.seed, **flatten(canonical(result.sampling))}
    shown |= {"classifier": result.classifier} if result.classifier else {}
    return [(name.replace("_", " "), value) for name, value in shown.items()]


def _curve(result: EvaluationResult, out: UPath) -> str:
    """Return the distances of a training's checkpoints of other lengths, measured alike; '' without others."""
    every = {result.train_steps: result}
    for folder in sorted(out.parent.iterdir(), key=str) if result.training else ():
        found = load(folder, EvaluationResult)
        if found is not None and _alike(found.result, result):
            every.setdefault(found.result.train_steps, found.result)
    points = sorted((steps or 0, of.fd, of.errors.get(frechet.NAME, 0.0)) for steps, of in every.items())
    return distance_curve(points, result.metric) if len(points) > 1 else ""


def _alike(other: EvaluationResult, result: EvaluationResult) -> bool:
    """Tell whether two numbers differ by the length of the training alone."""
    same = all(getattr(other, name) == getattr(result, name) for name in ("training", "sampling", "seed", "ema"))
    return same and comparable(other.conditions, result.conditions)


def _classes(findings: Findings) -> dict[str, Any]:
    """Return the accuracy of all classes, or of the best and the worst of many; nothing without a classifier."""
    found = accuracy.by_class(findings.generated)
    ordered = sorted(found, key=lambda label: -found[label])
    few = len(ordered) <= 2 * _ENDS
    chosen = ordered if few else ordered[:_ENDS] + ordered[-_ENDS:]
    bars = {f"{findings.classes[label]} ({label})": found[label] for label in chosen}
    return {
        "bars": class_bars(bars, findings.result.numbers[accuracy.NAME]) if bars else "",
        "bars_note": "By class." if few else f"The {_ENDS} best and the {_ENDS} worst of {len(found)} classes.",
    }  # fmt: skip


def _nearest(findings: Findings) -> dict[str, Any]:
    """Return samples beside their nearest real images; nothing where the reference holds no single images."""
    real, generated = findings.real, findings.generated.features
    if not len(real.pictures):
        return {"neighbours": [], "histogram": "", "candidates": 0, "memory_note": ""}
    every = {"generated": nearest(generated[:MOST], real.set.features, 1).distances[:, 0]}
    note = ""
    if findings.heldout is not None and len(findings.heldout.features):
        every["held-out real"] = nearest(findings.heldout.features[:MOST], real.set.features, 1).distances[:, 0]
        share = float(np.mean(every["generated"] < np.quantile(every["held-out real"], 0.05)))
        note = (
            f"Of the first {len(every['generated'])} samples {share:.1%} lie nearer to a real image than all but 5 % "
            "of the held-out images do: far more than 5 % are a sign of memorised images."
        )
    indices = list(findings.shown)[:_ROWS]
    found = nearest(generated[indices], real.set.features, _NEIGHBOURS) if indices else None
    rows = [
        {
            "index": index,
            "label": findings.classes[int(findings.generated.labels[index])],
            "sample": _png(findings.shown[index]),
            "found": [
                (_text(bytes(real.pictures[place])), f"{distance:.2f}")
                for place, distance in zip(found.places[row], found.distances[row], strict=True)
            ],
        }
        for row, index in enumerate(indices)
    ] if found else []  # fmt: skip
    histogram = distance_histograms({name: _plain(of) for name, of in every.items()})
    return {"neighbours": rows, "histogram": histogram, "candidates": len(real.pictures), "memory_note": note}


def _plain(distances: np.ndarray) -> Sequence[float]:
    return [float(distance) for distance in distances]


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return _text(buffer.getvalue())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
