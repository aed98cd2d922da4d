"""What a recipe would make, in hours and bytes, before anything is made.

Seconds are those of a recorded step that differs in its amount of work alone, scaled; else counted operations (two a
weight and token forwards, twice that backwards; attention's own left out, a masked trunk as if it saw
all tokens in each step; the others keep what they read, and read each token once) at the rates stated here.
"""

import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from evaluate.config import Sampling
from infra.artifact import Step
from infra.cluster import Compute, Stage, usable_cores
from infra.console import table
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import read_json
from pipeline.measuring import planner
from pipeline.recipe import Recipe
from tokenize_jobs.config import Fit
from tokenize_jobs.sources.listing import ImageFiles, Images, scan_images
from tokenize_jobs.sources.survey import survey
from tokenize_jobs.tokenizers import geometry
from train.config import Train
from train.models.config import Model
from train.models.heads import DiffusionHead, FlowHead
from tune.config import SamplingSweep

GPU_RATE, CORE_RATE = 50e12, 5e10
"""Operations a second of a GPU in bf16, and of a processor's core in float32."""
_CORES_ELSEWHERE = 2  # of a worker, on a cluster that is not asked
_KL_OPERATIONS = 0.276e12 / 256**2  # encoder of KL-16, an image and its mirror, by pixel
_WORK = {"train_steps", "images", "seed", "lr", "warmup_steps"}
_BYTES_A_WEIGHT = 6 * 4  # weights, their average, and both with AdamW's two moments to go on from


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
    operations, size = _counted(step.name, recipe, model, images)
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


def _counted(name: str, recipe: Recipe, model: Model | None, images: int | None) -> tuple[float | None, float | None]:
    """Return the operations of a step and the bytes of what it makes."""
    if name == "tokenizer" and isinstance(recipe.tokenizer, Fit):
        return _fitted(recipe.tokenizer, recipe.tokenize.image_size)
    if model is None:
        return None, None
    if name == "latents" and images is not None:
        is_kl = recipe.tokenizer.kind in ("kl16", "diffusers")
        operations = images * _KL_OPERATIONS * recipe.tokenize.image_size**2 if is_kl else None
        kind = geometry(recipe.tokenizer).of_image(recipe.tokenize.image_size)
        return operations, images * 2.0 * kind.bytes
    if name not in ("checkpoint", "sweep", "evaluation") or (
        name == "sweep" and not isinstance(recipe.tune, SamplingSweep)
    ):
        return None, None
    if name == "checkpoint":
        seen = recipe.train.train_steps * recipe.train.batch_size
        found, draws = weights(model), getattr(model.head, "batch_mul", 1)
        per_image = found.trunk * _rows(model) + found.classes + found.head * model.num_tokens * draws
        return seen * 6.0 * per_image, sum(found) * float(_BYTES_A_WEIGHT)
    base = recipe.evaluate.generate.sampling
    swept = recipe.tune if name == "sweep" and isinstance(recipe.tune, SamplingSweep) else None
    settings = swept.planned(base) if swept else [base]
    drawn = _drawn_of_each(swept, base, len(settings)) if swept else recipe.evaluate.generate.images
    return drawn * sum(drawing(model, setting) for setting in settings), None


def _rows(model: Model) -> int:
    return model.num_tokens + model.trunk.buffer_size


def drawing(model: Model, settings: Sampling) -> float:
    """Return the operations that drawing an image takes."""
    found, halves = weights(model), 2 if settings.cfg_scale != 1 else 1
    passes = 1 if model.trunk.teacher_forced else settings.ar_steps
    steps, denoises = settings.diffusion_steps, isinstance(model.head, DiffusionHead | FlowHead)
    evaluations = (steps.first + steps.last) / 2 if denoises else 1
    trunk = found.trunk * _rows(model) * passes + found.classes * settings.ar_steps
    return 2.0 * halves * (trunk + found.head * model.num_tokens * evaluations)


def _fitted(config: Fit, size: int) -> tuple[float, float]:
    """Return the operations of a fit, the codebook and added terms left out, and the bytes of its weights."""
    import torch  # seconds to import, and only here
    from torch.utils.flop_counter import FlopCounterMode

    from tokenize_jobs.tokenizers.small_kl import Shape, SmallKL

    shape = Shape(stride=config.stride, channels=config.channels, width=config.width, depth=config.depth)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = SmallKL(shape)
        mean, _ = model.encoder(torch.empty(1, 3, size, size)).chunk(2, 1)
        model.decoder(mean)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 3.0 * counter.get_total_flops() * config.batch_size * config.train_steps, weights * 4.0


def _drawn_of_each(swept: SamplingSweep, base: Sampling, combinations: int) -> float:
    """Return the images drawn of each combination on average: not all need be tried, and finalists are drawn again."""
    trials = swept.count(base)
    finalists = min(swept.finalists, trials) * (swept.final_images - swept.images)
    return (trials * swept.images + finalists) / combinations


class Weights(NamedTuple):
    """How many weights a model has, by how often each is multiplied."""

    trunk: int
    """Once a token or row of the class."""
    classes: int
    """Once an image and pass: what the class sets norms and gates by."""
    head: int
    """Once a token that is drawn, or more often where it denoises."""


@functools.cache
def weights(model: Model) -> Weights:
    """Return the numbers of weights of a model."""
    import torch  # seconds to import, and only here

    from train.models.build import build_model

    with torch.device("meta"):
        built = build_model(model)
    classes = sum(of.numel() for name, of in built.named_parameters() if "ada_lin." in name)
    head = sum(of.numel() for of in built.head.parameters())
    return Weights(sum(of.numel() for of in built.parameters()) - classes - head, classes, head)


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
    operations = images * _KL_OPERATIONS * size**2
    basis = f"{operations / 1e12:,.0f} TFLOP on {device}, reading left out"
    return Estimate("to make", operations / rate, images * 2 * 2 * 16 * (size // 16) ** 2 * 2.0, basis)


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:,.2f}"


def _size(size: float | None) -> str:
    return "?" if size is None else f"{size:,.0f}"
