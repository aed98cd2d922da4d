"""Sampling sweeps of several models in one picture: what each is worth at which speed, as the paper's Figure 6."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from upath import UPath

from infra.artifact import RECORD
from infra.cluster import Compute, tracking_uri
from infra.console import say
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint
from infra.storage import local_root
from pipeline.links import run_page
from pipeline.make import Run
from pipeline.plan import Planner
from pipeline.summary import say_links, served
from tune.config import SamplingSweep
from tune.results import PAGE, SweepResult

_FOLDER = "sweeps"


def check_alike(runs: Mapping[str, Run]) -> None:
    """Raise InputError unless all models are swept over sampling settings and measured alike; nothing runs yet."""
    for name, run in runs.items():
        if not isinstance(run.recipe.tune, SamplingSweep):
            raise InputError(f"{name}: several models are compared by their sampling: add --sweep sampling")
    measured = {name: _measured_by(name, run) for name, run in runs.items()}
    first, *others = measured
    for other in others:
        if measured[other] != measured[first]:
            raise InputError(
                f"{first} and {other} are measured against different images, or with other numbers or seeds of images, "
                "or in another precision"
            )


def _measured_by(name: str, run: Run) -> tuple[object, ...]:
    sweep = run.recipe.tune
    assert isinstance(sweep, SamplingSweep)
    try:
        reference = Planner(run.recipe, run.compute, again=run.again).plan().steps["reference"].fingerprint
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return reference, sweep.images, sweep.seed, run.recipe.evaluate.generate.sampling.precisions


def short_names(targets: Sequence[str]) -> list[str]:
    """Return the last two parts of each path, as 'emoji-32/0aa1b2c3'; else the words as they are."""
    paths = [PurePosixPath(target.removesuffix(f"/{RECORD}")) for target in targets]
    short = ["/".join(path.parts[-2:]) for path in paths]
    return short if len(set(short)) == len(short) else list(targets)


def write_models(compute: Compute, swept: Mapping[str, SweepResult]) -> UPath:
    """Leave a page with the picture, and the picture as PNG and SVG, below the output root and in MLflow."""
    from infra.tracking import Tracker, answering
    from tune.models_page import SPEED, write_models_page

    root, results = local_root(compute.out), dict(zip(short_names(list(swept)), swept.values(), strict=True))
    identity = fingerprint({name: canonical(result, identity=False) for name, result in results.items()})
    out = root / _FOLDER / identity
    out.mkdir(parents=True, exist_ok=True)
    write_models_page(results, out)
    say(f"models side by side: {out / PAGE}")
    tracker = Tracker(tracking_uri(compute, root), root)
    with answering(tracker.uri):
        run = tracker.open(" and ".join(results), identity)
        tracker.image(run, out / f"{SPEED}.png", f"sweep/{SPEED}", once=True)
        for name in (PAGE, f"{SPEED}.svg"):
            tracker.file(run, out / name)
        tracker.finish(run)
    say_links([("models", run_page(tracker, run))], served(tracker.uri, root))
    return out
