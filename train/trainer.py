"""Assembles Ray Train's TorchTrainer around the loop, and turns its last checkpoint into a model directory."""

import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.train.torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from upath import UPath

from infra.cluster import Compute, Workers, connected, keeping_interrupts
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.follow import following, logged
from infra.processor import multiplies_bf16
from infra.storage import read_json
from tokenize_jobs.store.shards import MANIFEST
from tokenize_jobs.tokens import read_kind
from train.best import Best, best
from train.card import ModelCard, read_card
from train.checkpoint import write_model
from train.config import Train
from train.log import NOT_METRICS
from train.loop import FAILED, KEEPING_MEMORY, PREEMPTED, REFUSED, STOPPED, Data, TrainJob, train_worker
from train.memory import device_bytes, recomputes
from train.models.config import Model
from train.progress import EMA_OF_IT, MODEL, check_same, fault, newest_whole, read_weights, step_of
from train.rerun import begin_like, put_in_order, say_passed_over
from train.results import BEST, EVALUATIONS, LOG, CheckpointResult
from train.start import Start
from train.validation import STOP, Validation

RUN = "ray_train"
_MOST_FAILURES = 3  # of the workers: they go on after more where a checkpoint was written since the first
_MOST_STARTS = 4  # that wait for nodes in vain, before a line says so and the next ones wait
_START_SECONDS = "20"  # of an elastic group, which Ray first asks of a dead node too: it takes those that are there
_LOOK_SECONDS = 30  # for nodes that have come
_LEAVE_SECONDS = 120  # a signal to all processes at once has ended the workers too: nobody saves then


@dataclass(frozen=True)
class Group:
    """Who trains: so many workers, or as many more as the cluster holds, which may leave and come."""

    fewest: Workers
    most: int = 0

    @property
    def scaling(self) -> ray.train.ScalingConfig:
        """What Ray Train is told."""
        count, gpus = self.fewest.count, self.fewest.gpus > 0
        return ray.train.ScalingConfig(
            num_workers=(count, self.most) if self.most else count,  # pyrefly: ignore
            use_gpu=gpus, resources_per_worker=self.fewest.resources, elastic_resize_monitor_interval_s=_LOOK_SECONDS,  # pyrefly: ignore
        )  # fmt: skip


def train(
    config: Train,
    data: Data,
    out: UPath,
    compute: Compute,
    on_log: Callable[[dict[str, Any]], None],
    begin: UPath | None = None,
    start: UPath | None = None,
    validation: Validation | None = None,
) -> CheckpointResult:
    """Train on latents, leaving a model directory in `out`; `on_log` gets each logged step, and each `validation`.

    The loss on images that are held out is part of the log at each checkpoint. The first step finds the weights of the
    model `start`, whose scale the latents then have, or random ones.

    Run again after any interruption, it goes on from the newest checkpoint; before there is any, from that of `begin`,
    a finished training that differs in its number of steps alone. Raises InputError when the model
    does not fit the latents, `out` holds a checkpoint of another training, or a worker finds what it is given damaged;
    RuntimeError when training diverged.
    """
    manifest = read_json(data.store / MANIFEST)
    kind, classes = read_kind(manifest["layout"]), tuple(manifest["classes"])
    model = config.on(kind, len(classes))
    config.check(model)
    config.check_workers(compute.train.workers, compute.train.most_workers, compute.train.gpus)
    from_model = Start(start, config.start_weights) if start else None
    card = ModelCard(
        model=model, latent_scale=read_card(start).latent_scale if start else kind.scale(manifest), classes=classes,
        tokenizer_kind=manifest["tokenizer"]["kind"], tokenizer_hash=manifest["tokenizer"]["weights"],
        train_steps=config.train_steps, images_seen=config.train_steps * config.batch_size, ema_decay=config.ema_decay,
    )  # fmt: skip
    log, root = Path(str(out)) / LOG, Path(str(out)) / RUN
    of = canonical({"train": {**canonical(config), "model": model}, "latent_scale": card.latent_scale,
                    "tokenizer": card.tokenizer_hash})  # fmt: skip
    check_same(root, of)
    told = following(log, on_log), following(log.with_name(EVALUATIONS), on_log)
    if compute.train.most_workers:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = _START_SECONDS
    with connected(compute) as cluster, told[0], told[1], keeping_interrupts(), _stopping(root / STOP):
        workers = _workers(config, compute, cluster.train)
        if validation is not None:
            workers = _beside(validation, workers, config, compute)
        job = TrainJob(
            config, model, data, card.latent_scale, str(log), workers.cpus, str(root), str(root / STOP),
            begin_like(begin, root, log, RUN, validation and validation.under), of, _noticing(compute),
            compute.train.sharded, _recomputing(config, model, workers, cut=compute.train.sharded),
            validation.every if validation else 0, from_model,
        )  # fmt: skip
        measuring = validation and validation.for_ray(card, root, log.with_name(EVALUATIONS))
        returned = _fit(job, Group(workers, compute.train.most_workers), out, measuring)
    return _finished(card, out, log, root, returned)


def _workers(config: Train, compute: Compute, found: Workers) -> Workers:
    """Return who trains: as many as were asked for, else as many of those the cluster holds as the batch keeps busy."""
    stage_of = compute.train
    workers = found if stage_of.workers else replace(found, count=_busy(config, found.count))
    if not stage_of.workers and (stage_of.most_workers or workers.gpus % 1):  # two cannot share a GPU
        workers = replace(workers, count=1)
    up_to = f" to {stage_of.most_workers}" * bool(stage_of.most_workers)
    stage("checkpoint", f"{workers.count}{up_to} workers, {workers.cpus} cores and {workers.gpus:g} GPUs each")
    _warn_of_bf16(config, workers)
    return workers


def _beside(validation: Validation, workers: Workers, config: Train, compute: Compute) -> Workers:
    """Return the workers with room for what measures checkpoints, where nobody has said how many train."""
    asked = compute.train
    left = validation.beside(
        workers, chosen=bool(asked.workers or asked.most_workers if validation.gpus else asked.cpus)
    )
    return left if left.count == workers.count else replace(left, count=_busy(config, left.count))


def _noticing(compute: Compute) -> bool:
    """Have Ray watch for nodes that will be taken away, unless the cluster is this process' own: it costs a process."""
    joined = bool(compute.address or os.environ.get("RAY_ADDRESS"))
    if joined:
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"
    return joined


def _recomputing(config: Train, model: Model, workers: Workers, *, cut: bool) -> bool:
    """Tell whether activations are computed again. Raises InputError where a step does not fit the GPUs."""
    recomputing = recomputes(config, model, workers.count, device_bytes(workers), cut=cut)
    if recomputing and config.activation_checkpointing == "auto":
        stage("checkpoint", "the GPU's memory is small: activations are computed again in the backward pass")
    return recomputing


def _finished(card: ModelCard, out: UPath, log: Path, root: Path, returned: dict[str, Any]) -> CheckpointResult:
    """Write the model directory from the last progress, if the training came to its end."""
    if REFUSED in returned:
        raise InputError(returned[REFUSED])
    if FAILED in returned:
        raise RuntimeError(f"training diverged: {returned[FAILED]}. Lower --train.lr or raise --train.warmup-steps.")
    if STOPPED in returned or (root / STOP).exists():  # too late for a step; what follows takes hours too
        reached = returned.get(STOPPED, card.train_steps)
        stage("checkpoint", f"stopped after step {reached}, where the next run goes on")
        raise KeyboardInterrupt
    folder = newest_whole(root, say_passed_over)
    if folder is None or step_of(folder) < card.train_steps:
        raise RuntimeError(f"the last checkpoint below {root} is damaged: run again, which makes it again")
    weights = read_weights(folder, MODEL)
    write_model(out, card, weights, read_weights(folder, EMA_OF_IT))
    kept = _write_best(card, out, root)
    parameters = sum(tensor.numel() for tensor in weights.values())
    last, rate = _last_log(log)
    return CheckpointResult(
        train_steps=card.train_steps, images_seen=card.images_seen, parameters=parameters, last=last,
        images_per_second=rate, images=returned["images"], images_held_back=returned["images_held_back"],
        best_step=kept.step if kept else 0,
    )  # fmt: skip


def _write_best(card: ModelCard, out: UPath, root: Path) -> Best | None:
    """Leave the best model too, as a directory of its own, where it is not the last; returns which one it is."""
    kept = best(root)
    if kept is not None and (found := fault(kept.folder)):
        say_passed_over(f"{kept.folder}: {found}; passed over")
        return None
    if kept is not None and kept.step != card.train_steps:
        stage("checkpoint", f"the best by {kept.by} was step {kept.step} ({kept.value:.4g}): {out / BEST}")
        weights = [read_weights(kept.folder, kind) for kind in (MODEL, EMA_OF_IT)]
        seen = kept.step * card.images_seen // card.train_steps
        write_model(out / BEST, replace(card, train_steps=kept.step, images_seen=seen), *weights)
    return kept


def _warn_of_bf16(config: Train, workers: Workers) -> None:
    if config.precision == "bf16" and not workers.gpus and multiplies_bf16() is False:
        stage(
            "checkpoint",
            "warning: this processor does not multiply in bf16, which is then some twenty times slower than fp32: "
            "--train.precision fp32",
        )


def _busy(config: Train, workers: int) -> int:
    """Return the most of these workers among whom the batch divides, or that have a micro-batch each."""
    if config.micro_batch:
        return min(workers, config.most_workers)
    return next(count for count in range(workers, 0, -1) if config.batch_size % count == 0)


@contextmanager
def _stopping(stop: Path) -> Iterator[None]:
    """Ask the workers to save and leave when this process is told to end: by a job's stop, or a machine's."""
    stop.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    def ask(*_: object) -> None:
        stage("checkpoint", "asked to end: saving after the next line of the log")
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.touch()
        signal.signal(signal.SIGTERM, leave)
        last_word.start()

    last_word = threading.Timer(_LEAVE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    last_word.daemon = True
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        last_word.cancel()
        signal.signal(signal.SIGTERM, before)


def _fit(job: TrainJob, group: Group, out: UPath, measuring: ray.train.ValidationConfig | None) -> dict[str, Any]:
    """Train to the end, whatever fails, as long as each few failures are followed by progress; returns what it says."""
    while True:
        begun = put_in_order(Path(job.progress))
        if begun is not None:
            stage("checkpoint", f"going on from step {step_of(begun)}")
        elif job.start is not None and not job.begin:
            stage("checkpoint", job.start.told(job.model))
        try:
            returned = _trainer(job, group, out, measuring).fit().return_value
            if PREEMPTED not in returned:
                return returned
            stage(
                "checkpoint", f"a node will be taken away: saved after step {returned[PREEMPTED]}, going on elsewhere"
            )
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"training failed: Ray Train's controller ended: {error}") from None
        except ray.train.TrainingFailedError as error:
            workers, controller = (getattr(error, of, None) for of in ("worker_failures", "controller_failure"))
            if isinstance(controller, WorkerGroupStartupTimeoutError):
                stage("checkpoint", f"no nodes hold {group.fewest.count} workers: waiting for them")
                continue
            if refused := [each for each in (workers or {}).values() if isinstance(each, InputError)]:
                raise refused[0] from None
            reached = newest_whole(Path(job.progress))
            if reached is None or (begun is not None and step_of(reached) <= step_of(begun)):
                raise RuntimeError(f"training failed: {error}") from None
            times = "" if controller else f" {_MOST_FAILURES} times"
            stage("checkpoint", f"failed{times}, after progress: {str(error).strip().splitlines()[-1]}")


def _trainer(
    job: TrainJob, group: Group, out: UPath, measuring: ray.train.ValidationConfig | None
) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(timeout_s=300),
        scaling_config=group.scaling,
        validation_config=measuring,  # pyrefly: ignore
        run_config=ray.train.RunConfig(
            name=RUN,
            storage_path=str(out),
            worker_runtime_env={"env_vars": KEEPING_MEMORY},  # pyrefly: ignore
            failure_config=ray.train.FailureConfig(
                max_failures=_MOST_FAILURES - 1,
                controller_failure_limit=_MOST_STARTS,  # pyrefly: ignore
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _last_log(log: Path) -> tuple[dict[str, float], float | None]:
    """Return the terms of the last logged step, and the median of images a second."""
    lines = logged(log)
    if not lines:
        return {}, None
    last = {name: value for name, value in lines[-1].items() if name not in NOT_METRICS}
    return last, statistics.median(line["images_per_second"] for line in lines)
