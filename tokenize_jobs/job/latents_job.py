"""The tokenization job on Ray Data: read and crop on CPU tasks, encode on a fixed set of actors, commit shards.

    shards -> (part of a shard: up to PART_IMAGES uint8 images) -> (values of the part, staged) -> shard committed

A part is one row, so that its images stay together; the driver sees only names and counts. When all parts of a
shard are staged, one actor joins them into the shard's file and writes its commit record. A killed job leaves
committed shards, which are not read again, and staged parts, which are made anew.
"""

import os
import pickle
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.data
from upath import UPath

from infra.actors import actors
from infra.cluster import Compute, Workers, connected
from infra.console import Progress, stage
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import read_json, storage_errors, write_json
from tokenize_jobs.config import Tokenize, TokenizerFile
from tokenize_jobs.job.committer import Committer
from tokenize_jobs.job.encoder import PartEncoder
from tokenize_jobs.job.parts import PartReader, Rates
from tokenize_jobs.results import LatentsResult
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import evenly
from tokenize_jobs.sources.shard import Shard
from tokenize_jobs.sources.survey import require_usable
from tokenize_jobs.store.shards import QUARANTINE, ShardCommit, committed, publish, read_commits, write_quarantine
from tokenize_jobs.tokenizers import Geometry, load
from tokenize_jobs.tokens import TokenKind

_ENCODERS_A_COMMITTER = 32  # half of what one was measured to keep up with
_PRECISION, _COMPARED = "precision.json", 32
_MOST_READERS = 8  # of an encoder: they hold two parts each in the object store, 50 MB at 256 px


def kind_of(weights: TokenizerFile, image_size: int) -> TokenKind:
    """Return what this tokenizer makes of an image. Raises InputError unless its stride divides the size."""
    tokenizer = load(weights.kind, weights.path)
    return Geometry(tokenizer.stride, tokenizer.tokens).of_image(image_size)


def tokenize(config: Tokenize, weights: TokenizerFile, source: Listing, out: UPath, compute: Compute) -> LatentsResult:
    """Fill the latent store at `out` and publish it; goes on after an interruption.

    Raises InputError when too many images are bad, before the first shard where none can be used, and what the storage
    raised when it fails: finished shards are kept.
    """
    kind = kind_of(weights, config.image_size)
    done = committed(out)
    pending = [shard for shard in source.shards if shard.name not in done]
    if pending and not any(commit.rows for commit in done.values()):
        require_usable(replace(source, shards=tuple(pending)))
    stage("latents", f"{len(source.shards)} shards, {len(source.shards) - len(pending)} committed before")
    staging, rates = out / "staging" / uuid.uuid4().hex[:8], {}
    try:
        if pending:
            try:
                with connected(compute) as cluster:
                    rates = _run(config, weights, source, pending, kind, staging, out, cluster.encode)
            except OSError:  # another job that finished the store removes all that is staged
                if {shard.name for shard in pending} - committed(out).keys():
                    raise
        commits = {**done, **read_commits(out, [shard.name for shard in pending])}
        manifest = _publish(config, weights, source, kind, out, commits)
    finally:
        _remove(staging)
    if "warning" in manifest:
        stage("latents", f"warning: {manifest['warning']}")
    counted = {name: manifest[name] for name in ("images", "quarantined", "bytes")} | kind.measured(manifest)
    return LatentsResult(label=config.label(weights.kind), classes=source.classes, **counted, **rates)


def _publish(
    config: Tokenize,
    weights: TokenizerFile,
    source: Listing,
    kind: TokenKind,
    out: UPath,
    commits: Mapping[str, ShardCommit],
) -> dict[str, Any]:
    rows = sum(commits[shard.name].rows for shard in source.shards)
    bad = [(s.name, *pair) for s in source.shards for pair in commits[s.name].quarantined]
    if rows == 0 or len(bad) > config.max_bad_fraction * (rows + len(bad)):
        examples = "; ".join(f"{shard} {key}: {reason}" for shard, key, reason in bad[:3])
        write_quarantine(out, bad)
        raise InputError(
            f"image source {source.root}: {len(bad)} of {rows + len(bad)} images are bad, more than the share of "
            f"{config.max_bad_fraction:g} that --tokenize.max-bad-fraction allows; first: {examples}. "
            f"All are in {out / QUARANTINE}; the shards are kept."
        )
    provenance: dict[str, Any] = {
        "tokenizer": {"kind": weights.kind, "weights": weights.hash},
        "image_size": config.image_size,
        "classes": list(source.classes),
        "source": {
            "format": source.format,
            "shards": len(source.shards),
            "digest": source.digest,
            "bytes": source.total_bytes,
            **({"images": canonical(source.given, identity=False)} if source.given else {}),
        },
    }
    if config.precision != "fp32":
        provenance["precision"] = read_json(out / _PRECISION)
    manifest = publish(out, [shard.name for shard in source.shards], kind, provenance, commits)
    _remove(out / "staging")
    return manifest


def _run(
    config: Tokenize,
    weights: TokenizerFile,
    source: Listing,
    pending: list[Shard],
    kind: TokenKind,
    staging: UPath,
    out: UPath,
    workers: Workers,
) -> dict[str, float]:
    """Stream the pending shards through the cluster; returns the rates."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    rows = ray.data.from_items(  # each with its own files: what every task had to read would hold a million names
        [{"shard": index, "of": pickle.dumps(shard)} for index, shard in enumerate(pending)],
        override_num_blocks=len(pending),
    )
    committers = -(-workers.count // _ENCODERS_A_COMMITTER)
    with (
        actors(PartEncoder, weights, kind, config, str(staging), at_once=2, **asdict(workers)) as encoders,
        actors(Committer, str(out), kind, count=committers, cpus=0, gpus=0, at_once=4) as committing,
    ):
        _measure_precision(config, source, encoders[0], out)
        cores = ray.cluster_resources()["CPU"] - workers.count * workers.cpus
        parts = rows.flat_map(
            _HandingOn(PartReader(source, config.image_size), encoders),
            compute=ray.data.TaskPoolStrategy(size=max(1, min(int(cores * 2), _MOST_READERS * workers.count))),
            num_cpus=0.5,
        )
        return _commit_all(parts.iter_rows(), pending, committing, Rates(workers.count))


def _commit_all(
    parts: Iterable[dict[str, Any]], pending: list[Shard], committers: list[Any], rates: Rates
) -> dict[str, float]:
    """Have each shard committed as its last part arrives; returns the rates."""
    arrived: dict[int, list[dict[str, Any]]] = {}
    finished, commits, progress = 0, [], Progress("latents", len(pending), "shards")
    progress.update(0)
    for part in parts:
        if part["fault"]:
            raise OSError(part["fault"])
        received = arrived.setdefault(part["shard"], [])
        received.append(part)
        rates.add(part)
        last = next((p["index"] for p in received if p["last"]), None)
        if last is not None and len(received) == last + 1:
            name = pending[part["shard"]].name
            received.sort(key=lambda p: p["index"])
            quarantined = [
                pair for p in received for pair in zip(p["rejected_keys"], p["rejected_reasons"], strict=True)
            ]
            paths = [p["path"] for p in received if p["rows"]]
            finished += 1
            committer = committers[part["shard"] % len(committers)]
            commits.append(committer.commit.remote(name, paths, quarantined))
            ready, commits = ray.wait(commits, num_returns=len(commits), timeout=0)
            ray.get(ready)
            del arrived[part["shard"]]
        progress.update(finished, rates.line())
    ray.get(commits)
    return rates.measured()


def _measure_precision(config: Tokenize, source: Listing, encoder: Any, out: UPath) -> None:  # noqa: ANN401
    """Write the error against fp32 on some of the first shard's images, once for a store."""
    if config.precision == "fp32" or (out / _PRECISION).exists():
        return
    images = evenly(replace(source, shards=source.shards[:1]), config.image_size, _COMPARED)
    found = ray.get(encoder.error.remote(images)) if len(images) else {}
    write_json(out / _PRECISION, {"name": config.precision, "images": len(images), **found})


class _HandingOn:
    """Reads a shard's parts and hands each to an encoder while it reads the next; passes on what these return."""

    def __init__(self, read: PartReader, encoders: list[Any]) -> None:
        self.read, self.encoders = read, encoders

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        waiting = None
        for part in self.read(row):
            encoder = self.encoders[(part["shard"] + part["index"]) % len(self.encoders)]
            encoded = encoder.__call__.remote(part)
            if waiting is not None:
                yield ray.get(waiting)
            waiting = encoded
        yield ray.get(waiting)


def _remove(folder: UPath) -> None:
    """Remove a folder and what is in it, if it is there; storage that fails here is not worth an error."""
    try:
        if os.path.isdir(str(folder)):  # noqa: PTH112  a UPath may be remote
            shutil.rmtree(str(folder), ignore_errors=True)
        elif folder.exists():
            folder.fs.rm(folder.path, recursive=True)
    except storage_errors():
        stage("latents", f"could not remove {folder}")
