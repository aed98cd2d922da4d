"""Assembles Ray Train's TorchTrainer around the loop, and turns its last checkpoint into a model directory."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from upath import UPath

from infra.cluster import Compute, Workers, connected, keeping_interrupts
from infra.console import stage
from infra.follow import following, logged
from infra.processor import multiplies_bf16
from infra.storage import read_json
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.store.shards import MANIFEST
from tokenize_jobs.tokens import read_kind
from train.card import ModelCard
from train.checkpoint import read_progress, write_model
from train.config import Train
from train.loop import NOT_METRICS, TrainJob, train_worker
from train.results import LOG, CheckpointResult

RUN = "ray_train"


def train(
    config: Train,
    latents: UPath,
    out: UPath,
    compute: Compute,
    on_log: Callable[[dict[str, Any]], None],
    heldout: Heldout = NONE_HELD,
    heldout_latents: UPath | None = None,
) -> CheckpointResult:
    """Train on the latent store `latents`, leaving a model directory in `out`; `on_log` gets each logged step.

    Images of the store that `heldout` holds are not trained on. The loss on them, or on those of the small store
    `heldout_latents`, is part of the log at each checkpoint.

    Run again after any interruption, it goes on from the newest checkpoint. Raises InputError when the model
    does not fit the latents, RuntimeError when training diverged.
    """
    manifest = read_json(latents / MANIFEST)
    kind, classes = read_kind(manifest["layout"]), tuple(manifest["classes"])
    model = config.on(kind, len(classes))
    config.check(model)
    config.check_workers(compute.train.workers)
    log = Path(str(out)) / LOG
    with connected(compute) as cluster, following(log, on_log), keeping_interrupts():
        workers = cluster.train
        if not compute.train.workers:
            workers = replace(workers, count=_dividing(config.batch_size, workers.count))
        stage("checkpoint", f"{workers.count} workers, {workers.cpus} cores and {workers.gpus:g} GPUs each")
        job = TrainJob(config, model, str(latents), str(log), workers.cpus, heldout, str(heldout_latents or ""))
        _warn_of_bf16(config, workers)
        result = _trainer(job, workers, out).fit()
    if result.return_value and "failed" in result.return_value:
        raise RuntimeError(
            f"training diverged: {result.return_value['failed']}. Lower --train.lr or raise --train.warmup-steps."
        )
    if result.error is not None:
        raise RuntimeError(f"training failed: {result.error}")
    with result.checkpoint.as_directory() as folder:
        progress = read_progress(Path(folder))
    steps = progress["optimization"]["step"]
    card = ModelCard(
        model=model, latent_scale=kind.scale(manifest), classes=classes,
        tokenizer_kind=manifest["tokenizer"]["kind"], tokenizer_hash=manifest["tokenizer"]["weights"],
        train_steps=steps, images_seen=steps * config.batch_size, ema_decay=config.ema_decay,
    )  # fmt: skip
    write_model(out, card, progress["model"], progress["ema"])
    parameters = sum(tensor.numel() for tensor in progress["model"].values())
    last, rate = _last_log(log)
    return CheckpointResult(
        train_steps=steps, images_seen=card.images_seen, parameters=parameters, last=last, images_per_second=rate,
        images=result.return_value["images"], images_held_back=result.return_value["images_held_back"],
    )  # fmt: skip


def _warn_of_bf16(config: Train, workers: Workers) -> None:
    if config.precision == "bf16" and not workers.gpus and multiplies_bf16() is False:
        stage(
            "checkpoint",
            "warning: this processor does not multiply in bf16, which is then some twenty times slower than fp32: "
            "--train.precision fp32",
        )


def _dividing(batch_size: int, workers: int) -> int:
    """Return the most of these workers among whom the batch divides."""
    return next(count for count in range(workers, 0, -1) if batch_size % count == 0)


def _trainer(job: TrainJob, workers: Workers, out: UPath) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(timeout_s=300),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            name=RUN,
            storage_path=str(out),
            failure_config=ray.train.FailureConfig(max_failures=3, controller_failure_limit=20),  # pyrefly: ignore
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )


def _last_log(log: Path) -> tuple[dict[str, float], float | None]:
    """Return the terms of the last logged step, and the median of images a second."""
    lines = logged(log)
    if not lines:
        return {}, None
    last = {name: value for name, value in lines[-1].items() if name not in NOT_METRICS}
    return last, statistics.median(line["images_per_second"] for line in lines)
