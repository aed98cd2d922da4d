"""Training sweep: each trial is a whole training over the same latents, measured by the images that its model draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayError
from upath import UPath

from evaluate.config import Evaluate
from evaluate.finish import conditions_against
from evaluate.intervals import frechet_error
from evaluate.measure import Drawing, draw, feature_set
from evaluate.metrics import frechet
from evaluate.reference import RealFeatures, read_reference
from infra.cluster import Compute, connected
from infra.console import say, stage
from infra.errors import InputError
from infra.follow import logged
from infra.storage import location
from train.card import read_card
from train.results import CheckpointResult
from tune.halving import STEP, Ends, Rule, Training, at_once, run_trainings
from tune.training_results import Curve, FailedTraining, Trained, TrainingSweepResult
from tune.trial import BATCH, Work, time_alone


@dataclass(frozen=True)
class Measuring:
    """How the trained models are measured: images and seed of the sweep, sampling of the recipe."""

    config: Evaluate
    real: RealFeatures
    reference: UPath
    out: UPath
    compute: Compute


def training_sweep(
    trainings: Sequence[Training], rule: Rule, config: Evaluate, reference: UPath, out: UPath, compute: Compute
) -> TrainingSweepResult:
    """Train side by side what the cluster holds, stop weak ones early by `rule`, and measure what was trained whole.

    A training that fails stops no other. Raises RuntimeError when none finished.
    """
    measuring = Measuring(config, read_reference(reference), reference, out, compute)
    with connected(compute) as cluster:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        side_by_side = min(at_once(cluster.train, nodes), len(trainings))
        stage("sweep", f"{len(trainings)} trainings, {side_by_side} side by side; {rule}")
        ends = run_trainings(trainings, rule, side_by_side, out)
        if not ends.finished:
            raise RuntimeError(
                f"none of {len(trainings)} trainings finished, first: {next(iter(ends.failed.values()))}"
            )
        trained, unmeasured = _all_measured({p: trainings[p] for p in ends.finished}, rule.metric, measuring)
    if not trained:
        raise RuntimeError(f"none of {len(unmeasured)} trained models could be measured: {min(unmeasured.values())}")
    finished = [place for place in ends.finished if place not in unmeasured]
    ends = replace(ends, finished=finished, failed={**ends.failed, **unmeasured})
    result = result_of(trainings, ends, trained, rule, measuring)
    say(result.table())
    from tune.page import write_training_page  # matplotlib takes a second to import

    return write_training_page(result, out)


def result_of(
    trainings: Sequence[Training], ends: Ends, trained: Sequence[Trained], rule: Rule, measuring: Measuring
) -> TrainingSweepResult:
    """Return what a sweep found: every planned training, in one of three ways."""
    generate = measuring.config.generate
    conditions = conditions_against(measuring.real.about, generate.images, generate.sampling.precisions)
    said = str(rule) if any(of.curve for of in trained) else f"no training told its {rule.metric}, so none was stopped"
    stopped = [replace(of, curve=_curve(trainings[place].log, rule.metric)) for place, of in ends.stopped.items()]
    return TrainingSweepResult(
        metric=conditions.title, conditions=conditions, trials=tuple(sorted(trained, key=lambda trial: trial.fd)),
        stopped=tuple(sorted(stopped, key=lambda trial: (-trial.step, trial.value))),
        failed=tuple(_failed(trainings[place], reason) for place, reason in ends.failed.items()),
        rule=said, stopping_metric=rule.metric, timed_batch=min(generate.images, BATCH),
    )  # fmt: skip


def _all_measured(
    trainings: Mapping[int, Training], metric: str, measuring: Measuring
) -> tuple[list[Trained], dict[int, str]]:
    """Measure one trained model after the other, each on all workers for drawing; returns why some could not be too."""
    trained, unmeasured = [], {}
    for count, (place, training) in enumerate(trainings.items(), 1):
        stage("sweep", f"measuring {count}/{len(trainings)}: {training.label}")
        try:
            trained.append(_measured(training, training.make(lambda _: None), metric, measuring))
        except (InputError, RuntimeError, RayError) as error:
            unmeasured[place] = f"not measured: {str(error).strip().splitlines()[-1]}"
    return trained, unmeasured


def _measured(training: Training, checkpoint: CheckpointResult, metric: str, measuring: Measuring) -> Trained:
    config, real, subject = measuring.config, measuring.real, training.subject
    generate = config.generate
    drawing = Drawing(
        model=subject.model, weights=subject.weights, sampling=generate.sampling, config=config,
        features=real.about.features, folder=str(measuring.out / "features" / training.identity),
    )  # fmt: skip
    with connected(measuring.compute) as cluster:
        of = feature_set(draw(drawing, measuring.compute), read_card(location(subject.model)).model.num_classes)
        workers, settings = cluster.generate, [generate.sampling]
        work = Work(
            subject, str(measuring.reference), drawing.folder, generate.images, generate.seed, workers.cpus,
            generate.sampling,
        )  # fmt: skip
        remote = ray.remote(time_alone).options(num_cpus=workers.cpus, num_gpus=workers.gpus)
        (seconds,) = ray.get(remote.remote(work, settings))
    statistics = real.set.statistics
    return Trained(
        label=training.label, fields=dict(training.fields), checkpoint=training.identity,
        parameters=checkpoint.parameters, head_parameters=training.head_parameters,
        loss=checkpoint.last.get("loss", math.nan), curve=_curve(training.log, metric),
        fd=round(frechet.frechet_distance(of.statistics, statistics), 4),
        error=round(frechet_error(of.features, statistics.mean, statistics.covariance), 4),
        seconds_per_image=round(seconds, 6), train_steps=checkpoint.train_steps,
    )  # fmt: skip


def _failed(training: Training, reason: str) -> FailedTraining:
    return FailedTraining(
        label=training.label, fields=dict(training.fields), checkpoint=training.identity, reason=reason
    )


def _curve(log: str, metric: str) -> Curve:
    return tuple((int(line[STEP]), float(line[metric])) for line in logged(Path(log)) if metric in line)
