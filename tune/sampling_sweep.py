"""Sampling sweep over one checkpoint: every trial draws images with one setting; nothing is trained."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from evaluate.finish import conditions_against
from evaluate.measure import DRAWING
from evaluate.reference import read_reference
from evaluate.subject import Subject
from infra.cluster import Compute, Workers, connected
from infra.code import digests
from infra.console import Progress, stage
from infra.fingerprint import canonical, fingerprint
from infra.hold import holding
from infra.storage import location, write_json
from train.card import content_digest, read_card
from train.models.config import Model
from tune.config import SamplingSweep
from tune.ends import beyond, most_of, open_sides
from tune.front import contenders, front
from tune.results import TRIALS, SweepResult, Timed, Trial, Unfinished, label, ranked
from tune.search import Ended, Listed, Optuna, run_trials
from tune.trial import Measurement, Work, read_trial, time_alone, timed_batch

_MEASURING = (*DRAWING, "evaluate/intervals.py", "evaluate/metrics", "tune/trial.py")
"""Code that decides a trial's numbers."""


@dataclass(frozen=True)
class Measured:
    """What the trials of a sweep came to."""

    trials: Sequence[Trial]
    finalists: Sequence[Trial]
    ended: Sequence[Ended]
    front: Sequence[Timed]


def sampling_sweep(
    sweep: SamplingSweep, base: Sampling, subject: Subject, reference: UPath, out: UPath, compute: Compute
) -> SweepResult:
    """Run the trials that no sweep of this model and reference has done; leaves trials, figures and a page in `out`.

    `reference` is what `make_reference` left. Raises RuntimeError when no trial finished.
    """
    real, model = read_reference(reference).about, read_card(location(subject.model)).model
    identity = [content_digest(location(subject.model)), subject.weights.hash, canonical(real), digests(_MEASURING)]
    identity += [] if subject.use_ema else ["raw weights"]
    folder = out.parent / "trials" / fingerprint(identity)
    with connected(compute) as cluster, holding(out.parent / "trials", shared=True):
        work = Work(
            subject, str(reference), str(folder), sweep.images, sweep.seed, cluster.generate.cpus,
            sweep.planned(base)[0],
        )  # fmt: skip
        measured = _measure(sweep, base, work, model, cluster.generate, out)
    conditions = conditions_against(real, sweep.images, base.precisions)
    result = result_of(sweep, measured, conditions, timed_batch(work), model)
    _leave(result, folder, out)
    from tune.page import write_page  # matplotlib takes a second to import

    return write_page(result, out)


def _measure(sweep: SamplingSweep, base: Sampling, work: Work, model: Model, workers: Workers, out: UPath) -> Measured:
    def read(ended: Sequence[Ended]) -> list[Trial]:
        return [read_trial(work.path(trial.sampling)) for trial in ended if trial.state == "finished"]

    start = time.monotonic()
    ended = _searched(sweep, base, work, workers, out)
    if not read(ended):
        reasons = ", ".join(sorted({trial.reason for trial in ended}))
        raise RuntimeError(f"none of {len(ended)} trials finished: {reasons}")

    def run(further: Sequence[Sampling]) -> list[Ended]:
        stage("sweep", f"beyond the ends: {'; '.join(label(of, model.head) for of in further)}")
        left = max(sweep.minutes - (time.monotonic() - start) / 60, 1e-9) if sweep.minutes else 0
        return _run_listed(further, work, workers, out / "ray_tune_beyond", left)

    ended = widened(ended, sweep, read, run)
    trials = read(ended)
    best = ranked(trials)[: sweep.finalists]
    finalists, failed = _measured_again(best, replace(work, images=sweep.final_images), workers, out)
    return Measured(trials, finalists, [*ended, *failed], _timed_front(trials, work, workers))


def widened(
    ended: Sequence[Ended],
    sweep: SamplingSweep,
    read: Callable[[Sequence[Ended]], list[Trial]],
    run: Callable[[Sequence[Sampling]], list[Ended]],
) -> list[Ended]:
    """Return these trials and at most `sweep.widen` more, until on each side of the best one is worse beyond error.

    It ends too where none of those beyond finishes.
    """
    every, last = list(ended), list(ended)
    while (left := sweep.widen - (len(every) - len(ended))) and read(last):
        known = {trial.sampling for trial in every}
        if not (further := [of for of in beyond(read(every), sweep.axes()) if of not in known][:left]):
            break
        last = run(further)
        every += last
    return every


def _searched(sweep: SamplingSweep, base: Sampling, work: Work, workers: Workers, out: UPath) -> list[Ended]:
    """Return how every planned trial ended, each setting once."""
    if sweep.search != "optuna":
        return _run_listed(sweep.planned(base), work, workers, out / "ray_tune", sweep.minutes)
    measure, progress = Measurement(work), Progress("sweep", sweep.trials, "trials")
    search = Optuna(sweep.axes(), base, sweep.trials, sweep.seed, out / "asked.json")
    search = search.going_on(lambda sampling: measure(sampling) if work.path(sampling).exists() else None)
    progress.update(len(search.told))
    ended = [Ended(search.at(config), "finished") for config, _ in search.told]
    ended += run_trials(search, measure, workers, out / "ray_tune", progress, sweep.minutes)
    finished_last = sorted(ended, key=lambda trial: trial.state == "finished")
    return list({fingerprint(canonical(trial.sampling)): trial for trial in finished_last}.values())


def _run_listed(
    planned: Sequence[Sampling], work: Work, workers: Workers, folder: UPath, minutes: float
) -> list[Ended]:
    """Return how the trial of each setting ended; those that are there are not run again."""
    progress = Progress("sweep", len(planned), "trials")
    pending = tuple(sampling for sampling in planned if not work.path(sampling).exists())
    progress.update(len(planned) - len(pending))
    ended = run_trials(Listed(pending), Measurement(work), workers, folder, progress, minutes)
    by_setting = {trial.sampling: trial for trial in ended}
    return [by_setting.get(sampling, Ended(sampling, "finished")) for sampling in planned]


def _measured_again(best: Sequence[Trial], work: Work, workers: Workers, out: UPath) -> tuple[list[Trial], list[Ended]]:
    """Return these trials of more images, those that they have not drawn again; and those that failed."""
    if not best:
        return [], []
    stage("sweep", f"the best {len(best)} again, of {work.images} images each")
    settings = tuple(trial.sampling for trial in best)
    progress = Progress("sweep", len(best), "finalists")
    ended = run_trials(Listed(settings), Measurement(work), workers, out / "ray_tune_final", progress)
    of = f"as a finalist of {work.images} images"
    failed = [replace(trial, reason=f"{of}: {trial.reason}") for trial in ended if trial.state != "finished"]
    finished = [trial.sampling for trial in ended if trial.state == "finished"]
    return [read_trial(work.path(sampling)) for sampling in settings if sampling in finished], failed


def _timed_front(trials: Sequence[Trial], work: Work, workers: Workers) -> list[Timed]:
    """Return the front of speed against quality, what may be of it timed one after the other in one process."""
    members = contenders(trials)
    remote = ray.remote(time_alone).options(num_cpus=workers.cpus, num_gpus=workers.gpus)
    seconds = ray.get(remote.remote(work, [trial.sampling for trial in members]))
    return [
        Timed(label=members[place].label, sampling=members[place].sampling, fd=members[place].fd,
              error=members[place].error, seconds_per_image=round(seconds[place], 6))
        for place in front([(time, trial.fd) for time, trial in zip(seconds, members, strict=True)])
    ]  # fmt: skip


def result_of(
    sweep: SamplingSweep, measured: Measured, conditions: Conditions, timed_batch: int, model: Model
) -> SweepResult:
    """Return what a sweep of `model` found: the best, what ties with it, and where the space ends too soon."""
    best, *others = ranked(measured.finalists or measured.trials)
    own, again = (
        next(t for t in measured.trials if t.sampling == best.sampling),
        [t.sampling for t in measured.finalists],
    )
    cut = [t for t in ranked(measured.trials) if again and t.sampling not in again and t.is_tied_with(own)]
    return SweepResult(
        metric=conditions.title, conditions=conditions, best=best.sampling, best_label=best.label,
        trials=tuple(measured.trials), finalists=tuple(measured.finalists),
        tied=tuple(trial.label for trial in [*(other for other in others if other.is_tied_with(best)), *cut]),
        edges=_edges(sweep, measured.trials, best.sampling, model),
        front=tuple(measured.front), timed_batch=timed_batch, head=model.head,
        unfinished=tuple(
            Unfinished(label=label(of.sampling, model.head), sampling=of.sampling, state=of.state, reason=of.reason)
            for of in measured.ended if of.state != "finished"
        ),
    )  # fmt: skip


def _edges(sweep: SamplingSweep, trials: Sequence[Trial], best: Sampling, model: Model) -> tuple[str, ...]:
    """Return in words where better ones may lie beyond what was tried, on each open side of each setting."""
    return tuple(map(str, open_sides(trials, best, sweep.axes(), most_of(model), alike=bool(sweep.widen))))


def _leave(result: SweepResult, folder: UPath, out: UPath) -> None:
    """Leave the numbers of all trials and their grids in `out`."""
    write_json(out / TRIALS, canonical(result.trials + result.finalists))
    (out / "trials").mkdir(exist_ok=True)
    for trial in result.trials + result.finalists:
        name = f"{trial.identity}.png"
        shutil.copyfile(Path(str(folder / name)), Path(str(out / "trials" / name)))
