"""Sampling sweep with Ray Tune over one checkpoint: temperature x guidance x autoregressive steps x step schedule."""

import time
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import ray.tune
from upath import UPath

from evaluate.config import Sampling, Subject
from evaluate.evaluate import conditions_against
from evaluate.features import Extractor
from evaluate.grid import sample_grid
from evaluate.metrics import frechet
from evaluate.metrics.frechet import frechet_distance
from evaluate.metrics.sets import FeatureSums, Statistics
from evaluate.reference import read_reference
from evaluate.sampling.generate import Generator
from infra.cluster import Compute, Workers, connected
from infra.console import Progress
from infra.fingerprint import canonical, fingerprint, from_json
from infra.storage import location, write_json
from tune.config import SamplingSweep
from tune.results import SweepResult, Trial

_BATCH = 64


@dataclass(frozen=True)
class Trials:
    """What every trial needs to know."""

    sweep: SamplingSweep
    base: Sampling
    subject: Subject
    reference: str
    out: str
    cores: int


def sampling_sweep(
    sweep: SamplingSweep, base: Sampling, subject: Subject, reference: UPath, out: UPath, compute: Compute
) -> SweepResult:
    """Run the trials that are not done yet; leaves trials/*.json and a grid of each, and returns the best.

    `reference` is what `make_reference` left.
    """
    settings = sweep.settings(base)
    progress = Progress("sweep", len(settings), "trials")
    pending = [index for index, sampling in enumerate(settings) if not trial_path(out, sampling, sweep).exists()]
    progress.update(len(settings) - len(pending))
    if pending:
        with connected(compute) as cluster:
            workers = cluster.generate
            trials = Trials(sweep, base, subject, str(reference), str(out), workers.cpus)
            _run(trials, pending, workers, out, progress, len(settings))
    results = [read_trial(trial_path(out, sampling, sweep)) for sampling in settings]
    write_json(out / "trials.json", canonical(results))
    best = min(results, key=lambda trial: trial.numbers[frechet.NAME])
    conditions = conditions_against(read_reference(reference).about, sweep.images, base)
    return SweepResult(
        metric=conditions.title, conditions=conditions, best=best.sampling, best_label=best.label,
        trials=tuple(results),
    )  # fmt: skip


def read_trial(path: UPath) -> Trial:
    """Read what a trial left."""
    return from_json(path.read_text(), Trial, str(path))


def _run(trials: Trials, pending: list[int], workers: Workers, out: UPath, progress: Progress, total: int) -> None:
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(_trial, trials=trials), workers.resources),
        param_space={"trial": ray.tune.grid_search(pending)},
        tune_config=ray.tune.TuneConfig(
            metric=frechet.NAME, mode="min", max_concurrent_trials=workers.count, reuse_actors=True
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
        self.progress.update(self.done, f", FD {result[frechet.NAME]:.2f} at {result['label']}")


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
    distance = frechet_distance(reduce(FeatureSums.__add__, parts).statistics(), reference)
    trial = Trial(
        label=f"temperature {sampling.temperature}, CFG {sampling.cfg_scale}, {sampling.ar_steps} AR x "
        f"{sampling.diffusion_steps.label()} diffusion steps",
        sampling=sampling, numbers={frechet.NAME: round(distance, 4)}, images=trials.sweep.images,
        seed=trials.sweep.seed, seconds=round(time.monotonic() - start, 2),
    )  # fmt: skip
    path = trial_path(location(trials.out), sampling, trials.sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = sample_grid(first.__getitem__, len(first), generator.card.classes)
    picture.save(Path(str(path)).with_suffix(".png"))
    write_json(path, canonical(trial))
    ray.tune.report({**trial.numbers, "label": trial.label})


@lru_cache(maxsize=1)
def _tools(trials: Trials) -> tuple[Generator, Extractor, Statistics]:
    """Return model, extractor and reference; loaded once a process, which Tune reuses for its next trial."""
    generator = Generator(trials.subject.model, trials.subject.weights, cores=trials.cores)
    real = read_reference(location(trials.reference))
    return generator, Extractor(real.about.features), real.set.statistics


def trial_path(out: UPath, sampling: Sampling, sweep: SamplingSweep) -> UPath:
    """Return the result file of one trial."""
    return out / "trials" / f"{fingerprint([canonical(sampling), sweep.images, sweep.seed])}.json"
