"""What a recipe would make, in hours and bytes, before anything is made.

Seconds are those of a recorded step that differs in its amount of work alone, scaled; else the counted operations
(pipeline/operations.py) at the rates stated here.
"""

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.artifact import Step
from infra.cluster import Compute, Stage, usable_cores
from infra.console import table
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import read_json
from pipeline.measuring import planner
from pipeline.operations import KL_OPERATIONS, costs
from pipeline.recipe import Recipe
from tokenize_jobs.sources.listing import ImageFiles, Images, scan_images
from tokenize_jobs.sources.survey import survey
from train.config import Train
from train.models.config import Model

GPU_RATE, CORE_RATE = 50e12, 5e10
"""Operations a second of a GPU in bf16, and of a processor's core in float32."""
_CORES_ELSEWHERE = 2  # of a worker, on a cluster that is not asked
_WORK = {"train_steps", "images", "seed", "lr", "warmup_steps"}


@dataclass(frozen=True)
class Estimate:
    """What a step costs; None where nothing is known."""

    state: str
    seconds: float | None = None
    bytes: float | None = None
    basis: str = ""


def estimate(
    recipe: Recipe, compute: Compute, last: str, again: tuple[str, ...] = (),
    scanned: Mapping[ImageFiles, Images] | None = None,
) -> str:  # fmt: skip
    """Return a table of the steps up to `last`: what is cached, what the others would cost, and what refuses them."""
    planning = planner(recipe, compute, last, again=again, scanned=scanned)
    plan = planning.plan()
    images, model = _images(recipe, plan.steps, planning.scanned), _that_fits(plan.model)
    found = {step.name: _estimated(step, recipe, model, compute, images) for step in plan.until(last)}
    rows = [(name, e.state, _hours(e.seconds), _size(e.bytes), e.basis) for name, e in found.items()]
    rows.append((
        "all known", "", _hours(sum(e.seconds or 0 for e in found.values())),
        _size(sum(e.bytes or 0 for e in found.values())), "",
    ))  # fmt: skip
    text = table(rows, ("step", "", "hours", "bytes", "from")) + _memory(found, recipe.train, model, compute)
    try:
        plan.check(
            [name for name, e in found.items() if e.state != "cached"],
            compute.train.workers,
            compute.train.most_workers,
            compute.train.gpus,
        )
    except InputError as error:
        return f"{text}\n\nrefused as it stands: {error}"
    return text


def _that_fits(model: Model | None) -> Model | None:
    """Return a model that can be built, or None: what refuses it is told below the table."""
    try:
        if model is not None:
            model.check()
    except ValueError:
        return None
    return model


def _memory(found: Mapping[str, Estimate], config: Train, model: Model | None, compute: Compute) -> str:
    """Return what training holds on each GPU, where the recipe or a flag says how many images it takes at once."""
    workers = compute.train.workers or (config.most_workers if config.micro_batch else 0)
    if model is None or not workers or compute.train.gpus == 0 or "checkpoint" not in found:
        return ""
    if found["checkpoint"].state == "cached" or config.batch_size < workers:
        return ""
    from train.memory import counted  # torch takes seconds to import

    images = config.images_at_once(workers)
    parts = workers if compute.train.sharded else 1
    whole, lean = (counted(model, config, images, recomputing=again, parts=parts) for again in (False, True))
    return (
        f"\n\ncheckpoint, on {workers} GPUs, {images} images at once: {whole.gib:.1f} GiB counted on each ({whole}); "
        f"with --train.activation-checkpointing on {lean.gib:.1f}"
    )


def _estimated(step: Step, recipe: Recipe, model: Model | None, compute: Compute, images: int | None) -> Estimate:
    if step.find() is not None:
        return Estimate("cached")
    fitting = replace(compute.train, workers=1)
    stage = {"latents": compute.encode, "tokenizer": fitting, "checkpoint": compute.train}.get(step.name)
    operations, size = costs(step.name, recipe, model, images)
    if (seconds := _recorded(step)) is not None:
        return Estimate("to make", seconds, size, "recorded seconds of an equal step")
    if operations is None:
        return Estimate("to make", None, size, "not known")
    elsewhere = bool(compute.address or os.environ.get("RAY_ADDRESS"))
    rate, device = _rate(stage or compute.generate, elsewhere=elsewhere)
    return Estimate("to make", operations / rate, size, f"{operations / 1e12:,.0f} TFLOP on {device}")


def _recorded(step: Step) -> float | None:
    """Return the seconds of the newest step that differs in its amount of work alone, scaled to this one's."""
    mine = json.loads(json.dumps(canonical(step.config)))
    equal = [r for r in _records(step) if _without_work(r["config"]) == _without_work(mine)]
    if not equal:
        return None
    newest = max(equal, key=lambda record: record["finished"])
    return newest["seconds"] * _work(mine) / _work(newest["config"])


def _records(step: Step) -> Iterator[Mapping[str, Any]]:
    for path in (step.root / "artifacts" / step.name).glob("*/*/artifact.json"):
        record = read_json(path)
        if "seconds" in record and "config" in record:
            yield record


def _without_work(tree: Any) -> Any:  # noqa: ANN401
    if isinstance(tree, dict):
        return {key: _without_work(value) for key, value in tree.items() if key not in _WORK}
    return tree


def _work(tree: Any) -> float:  # noqa: ANN401
    """Return the product of the counts of work in a config: training steps, images."""
    if not isinstance(tree, dict):
        return 1
    counts = [
        value or 1 for key, value in tree.items() if key in ("train_steps", "images") and not isinstance(value, dict)
    ]
    product = 1.0
    for factor in itertools.chain(counts, (_work(value) for value in tree.values())):
        product *= factor
    return product


def _rate(stage: Stage, *, elsewhere: bool) -> tuple[float, str]:
    """Return operations a second and their device: this machine's, or what workers of a cluster `elsewhere` ask for.

    There a worker that asks for nothing has one GPU.
    """
    gpus = stage.workers or 1
    if stage.gpus == 0:
        gpus = 0
    elif stage.gpus is None and not elsewhere:
        import torch

        gpus = min(stage.workers or sys.maxsize, torch.cuda.device_count())
    if not gpus:
        cores = _cores(stage, elsewhere=elsewhere)
        return cores * CORE_RATE, f"{cores} core(s) at {CORE_RATE / 1e12:g} TFLOP/s each"
    return gpus * GPU_RATE, f"{gpus} GPU(s) at {GPU_RATE / 1e12:g} TFLOP/s each"


def _cores(stage: Stage, *, elsewhere: bool) -> int:
    """Return the cores that the stage's processes have together: those asked for, else all of this machine."""
    workers = stage.workers or 1
    if elsewhere:
        return workers * (stage.cpus or _CORES_ELSEWHERE)
    usable = usable_cores()
    return min(workers * stage.cpus, usable) if stage.cpus else usable


def _images(recipe: Recipe, steps: Mapping[str, Step], scanned: Mapping[ImageFiles, Images]) -> int | None:
    """Return how many pictures there are: as recorded, else counted, or by the mean size of a sample."""
    for name in ("latents", "pictures"):
        if name in steps and (artifact := steps[name].find()) is not None:
            return artifact.result.images
    if not isinstance(recipe.images, ImageFiles) or not recipe.images.path:
        return None
    return survey((scanned.get(recipe.images) or scan_images(recipe.images)).all).images


def kl16_estimate(images: int, size: int, compute: Compute) -> Estimate:
    """Return what it costs to encode pictures of `size` pixels by KL-16, with their mirrors."""
    rate, device = _rate(compute.encode, elsewhere=bool(compute.address or os.environ.get("RAY_ADDRESS")))
    operations = images * KL_OPERATIONS * size**2
    basis = f"{operations / 1e12:,.0f} TFLOP on {device}, reading left out"
    return Estimate("to make", operations / rate, images * 2 * 2 * 16 * (size // 16) ** 2 * 2.0, basis)


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:,.2f}"


def _size(size: float | None) -> str:
    return "?" if size is None else f"{size:,.0f}"
