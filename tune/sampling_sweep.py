"""Sampling sweep with Ray Tune over one checkpoint: temperature x guidance x autoregressive steps x step schedule."""

import json
import time
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import ray.tune
from upath import UPath

from evaluate.config import Features, Sampling, Subject, metric_name
from evaluate.evaluate import read_sums
from evaluate.features import Extractor
from evaluate.grid import sample_grid
from evaluate.metrics.frechet import FeatureSums, frechet_distance
from evaluate.sampling.generate import Generator
from infra.cluster import Compute, Workers, connected
from infra.console import Progress
from infra.fingerprint import canonical, fingerprint
from infra.storage import location, write_json
from tune.config import SamplingSweep

_BATCH = 64


@dataclass(frozen=True)
class Trials:
    """What every trial needs to know."""

    sweep: SamplingSweep
    base: Sampling
    features: Features
    subject: Subject
    reference: str
    out: str
    cores: int


def sampling_sweep(
    sweep: SamplingSweep,
    base: Sampling,
    features: Features,
    subject: Subject,
    reference: UPath,
    out: UPath,
    compute: Compute,
) -> dict[str, Any]:
    """Run the trials that are not done yet; leaves trials/*.json and a grid of each, and returns the best.

    `reference` is the evaluation whose reference sums the trials are measured against.
    """
    settings = sweep.settings(base)
    progress = Progress("sweep", len(settings), "trials")
    pending = [index for index, sampling in enumerate(settings) if not trial_path(out, sampling, sweep).exists()]
    progress.update(len(settings) - len(pending))
    if pending:
        with connected(compute) as cluster:
            workers = cluster.generate
            trials = Trials(sweep, base, features, subject, str(reference), str(out), workers.cpus)
            _run(trials, pending, workers, out, progress, len(settings))
    results = [json.loads(trial_path(out, sampling, sweep).read_text()) for sampling in settings]
    best = min(results, key=lambda result: result["fd"])
    write_json(out / "trials.json", results)
    return {
        "trials": len(results),
        "metric": metric_name(features, sweep.images),
        "best_fd": best["fd"],
        "best": best["sampling"],
        "best_label": best["label"],
    }


def _run(trials: Trials, pending: list[int], workers: Workers, out: UPath, progress: Progress, total: int) -> None:
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(_trial, trials=trials), workers.resources),
        param_space={"trial": ray.tune.grid_search(pending)},
        tune_config=ray.tune.TuneConfig(
            metric="fd", mode="min", max_concurrent_trials=workers.count, reuse_actors=True
        ),
        run_config=ray.tune.RunConfig(
            name="ray_tune", storage_path=str(out), verbose=0, callbacks=[_Told(progress, total - len(pending))]
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} of {len(pending)} trials failed, first: {results.errors[0]}")


class _Told(ray.tune.Callback):
    """Prints a line for each finished trial."""

    def __init__(self, progress: Progress, done: int) -> None:
        self.progress, self.done = progress, done

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        self.done += 1
        result = trial.last_result
        self.progress.update(self.done, f", FD {result['fd']:.2f} at {result['label']}")


def _trial(config: dict[str, Any], trials: Trials) -> None:
    """Draw images with one setting, measure them, and leave the result where the next run finds it."""
    sampling = trials.sweep.settings(trials.base)[config["trial"]]
    generator, extractor, reference = _tools(trials)
    start, parts, first = time.monotonic(), [], []
    for begin in range(0, trials.sweep.images, _BATCH):
        span = range(begin, min(begin + _BATCH, trials.sweep.images))
        images = generator.draw(generator.labels(span), span, trials.sweep.seed, sampling)
        first += list(images) if begin == 0 else []
        parts.append(FeatureSums.of(extractor(images)))
    result = {
        "label": f"temperature {sampling.temperature}, CFG {sampling.cfg_scale}, {sampling.ar_steps} AR x "
        f"{sampling.diffusion_steps.label()} diffusion steps",
        "sampling": canonical(sampling),
        "images": trials.sweep.images,
        "seed": trials.sweep.seed,
        "fd": round(frechet_distance(reduce(FeatureSums.__add__, parts), reference), 4),
        "seconds": round(time.monotonic() - start, 2),
    }
    path = trial_path(location(trials.out), sampling, trials.sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = sample_grid(first.__getitem__, len(first), generator.card.classes)
    picture.save(Path(str(path)).with_suffix(".png"))
    write_json(path, result)
    ray.tune.report(result)


@lru_cache(maxsize=1)
def _tools(trials: Trials) -> tuple[Generator, Extractor, FeatureSums]:
    """Return model, extractor and reference; loaded once a process, which Tune reuses for its next trial."""
    generator = Generator(trials.subject.model, trials.subject.weights, cores=trials.cores)
    return generator, Extractor(trials.features), read_sums(location(trials.reference) / "reference.npz")


def trial_path(out: UPath, sampling: Sampling, sweep: SamplingSweep) -> UPath:
    """Return the result file of one trial."""
    return out / "trials" / f"{fingerprint([canonical(sampling), sweep.images, sweep.seed])}.json"
