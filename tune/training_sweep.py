"""Training sweep: each trial is a whole training over the same latents, measured by the images that its model draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from upath import UPath

from evaluate.config import Evaluate, Subject
from evaluate.finish import conditions_against
from evaluate.intervals import frechet_error
from evaluate.measure import Drawing, draw, feature_set
from evaluate.metrics import frechet
from evaluate.reference import RealFeatures, read_reference
from infra.cluster import Compute, connected
from infra.console import say, stage
from infra.errors import InputError
from infra.storage import location
from train.card import read_card
from train.results import CheckpointResult
from tune.results import FailedTraining, Trained, TrainingSweepResult
from tune.trial import Work, time_alone


@dataclass(frozen=True)
class Training:
    """One trial: how its model is found or made, and where it then lies."""

    label: str
    subject: Subject
    identity: str
    """Of its checkpoint."""
    make: Callable[[], CheckpointResult]


def training_sweep(
    trainings: Sequence[Training], config: Evaluate, reference: UPath, out: UPath, compute: Compute
) -> TrainingSweepResult:
    """Make one training after the other, each on all workers for training, and measure it as `config` says.

    A training that fails stops no other. Raises RuntimeError when none finished.
    """
    real, trained, failed = read_reference(reference), list[Trained](), list[FailedTraining]()
    for place, training in enumerate(trainings, 1):
        stage("sweep", f"training {place}/{len(trainings)}: {training.label}")
        try:
            checkpoint = training.make()
        except (InputError, RuntimeError) as error:
            failed.append(FailedTraining(label=training.label, reason=str(error)))
            stage("sweep", f"failed: {error}")
            continue
        trained.append(_measured(training, checkpoint, config, real, reference, out, compute))
    if not trained:
        raise RuntimeError(f"none of {len(trainings)} trainings finished, first: {failed[0].reason}")
    trained.sort(key=lambda trial: trial.fd)
    conditions = conditions_against(real.about, config.generate.images, config.generate.sampling.precisions)
    result = TrainingSweepResult(
        metric=conditions.title, conditions=conditions, trials=tuple(trained), failed=tuple(failed)
    )
    say(result.table())
    return result


def _measured(
    training: Training,
    checkpoint: CheckpointResult,
    config: Evaluate,
    real: RealFeatures,
    reference: UPath,
    out: UPath,
    compute: Compute,
) -> Trained:
    generate, subject = config.generate, training.subject
    drawing = Drawing(
        model=subject.model, weights=subject.weights, sampling=generate.sampling, config=config,
        features=real.about.features, folder=str(out / "features" / training.identity),
    )  # fmt: skip
    with connected(compute) as cluster:
        of = feature_set(draw(drawing, compute), read_card(location(subject.model)).model.num_classes)
        workers, settings = cluster.generate, [generate.sampling]
        work = Work(
            subject, str(reference), drawing.folder, generate.images, generate.seed, workers.cpus, generate.sampling
        )  # fmt: skip
        remote = ray.remote(time_alone).options(num_cpus=workers.cpus, num_gpus=workers.gpus)
        (seconds,) = ray.get(remote.remote(work, settings))
    statistics = real.set.statistics
    return Trained(
        label=training.label, checkpoint=training.identity, parameters=checkpoint.parameters,
        loss=checkpoint.last.get("loss", math.nan),
        fd=round(frechet.frechet_distance(of.statistics, statistics), 4),
        error=round(frechet_error(of.features, statistics.mean, statistics.covariance), 4),
        seconds_per_image=round(seconds, 6), train_steps=checkpoint.train_steps,
    )  # fmt: skip
