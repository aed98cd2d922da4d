"""What compared models show of themselves: their losses over each other, and samples of the same classes and seed."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from evaluate.drawn import is_shown
from evaluate.grid import sample_grid
from evaluate.report.figures import svg_text
from evaluate.results import GRID
from infra.cluster import Compute
from infra.console import say
from infra.follow import logged
from infra.storage import local_root
from pipeline.plan import Planner
from pipeline.target import recipe_in
from train.results import LOG

if TYPE_CHECKING:
    from pipeline.comparison import Measured

_CURVES = ("heldout_loss", "heldout_mse", "loss")
_SIZE, _BATCH = (6.0, 3.6), 64


def curves(compared: Sequence["Measured"], compute: Compute) -> str:
    """Return the models' losses over the images that they have seen, as SVG; '' where no log is at hand.

    The loss on held-out images where all have it.
    """
    logs = {one.name: _log(one, compute) for one in compared}
    logs = {name: lines for name, lines in logs.items() if lines}
    if not logs:
        return ""
    shown = next((name for name in _CURVES if all(any(name in line for line in of) for of in logs.values())), "loss")
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    for one in compared:
        points = [(line["step"], line[shown]) for line in logs.get(one.name, []) if shown in line]
        if points:
            batch = one.artifact.record["recipe"]["train"]["batch_size"]
            axes.plot(
                [step * batch for step, _ in points], [value for _, value in points], linewidth=1.2, label=one.name
            )
    axes.set(xlabel="images seen", ylabel=shown, xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return svg_text(figure)


def _log(one: "Measured", compute: Compute) -> list[dict[str, Any]]:
    fingerprint = one.artifact.record.get("inputs", {}).get("checkpoint", "")
    logs = (local_root(compute.out) / "artifacts" / "checkpoint").glob(f"*/{fingerprint}/{LOG}") if fingerprint else []
    return next((logged(Path(str(log))) for log in logs), [])


def samples(compared: Sequence["Measured"], compute: Compute) -> list[bytes]:
    """Return the sample grid of each as PNG: those that were kept, or where they differ in seed or size, drawn anew."""
    if len({_shown(one) for one in compared}) == 1 and all((one.artifact.path / GRID).exists() for one in compared):
        return [(one.artifact.path / GRID).read_bytes() for one in compared]
    seed, columns = compared[0].result.seed, min(_shown(one)[1] for one in compared)
    return [_drawn(one, seed, columns, compute) for one in compared]


def _shown(one: "Measured") -> tuple[int, int]:
    """Return seed and columns of the grid that was kept."""
    columns = one.artifact.record["recipe"].get("evaluate", {}).get("grid_columns", 10)
    return one.result.seed, min(columns, one.result.conditions.images)


def _drawn(one: "Measured", seed: int, columns: int, compute: Compute) -> bytes:
    from evaluate.sampling.generate import Generator  # torch takes seconds to import

    plan = Planner(recipe_in(one.artifact.record["recipe"], one.name), compute).plan()
    generator = Generator(plan.model_path, plan.tokenizer, use_ema=one.result.ema)
    classes = len(generator.card.classes)
    count = columns * classes
    indices = [index for index in range(count) if is_shown(index, classes, columns)]
    say(f"{one.name}: drawing {len(indices)} images of seed {seed}")
    parts = [indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH)]
    drawn = [generator.draw(_labels(part, classes), part, seed, one.result.sampling) for part in parts]
    images = dict(zip(indices, np.concatenate(drawn), strict=True))
    buffer = io.BytesIO()
    sample_grid(images.__getitem__, count, generator.card.classes, columns).save(buffer, "png")
    return buffer.getvalue()


def _labels(indices: Sequence[int], classes: int) -> Any:  # noqa: ANN401  a tensor
    import torch

    return torch.tensor([index % classes for index in indices])
