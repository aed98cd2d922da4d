"""Describes a latent store, and re-checks every byte of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
from upath import UPath

from infra.console import table
from infra.errors import InputError
from infra.from_json import from_json
from infra.storage import read_json
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.listing import ImageFiles, Images, scan_images
from tokenize_jobs.store.shards import MANIFEST
from tokenize_jobs.tokens import TokenKind, read_kind


def describe(root: UPath) -> str:
    """Return what the store at `root` holds, for a person."""
    manifest = _manifest(root)
    kind, images, source, total = (
        read_kind(manifest["layout"]),
        manifest["images"],
        manifest["source"],
        manifest["bytes"],
    )
    rows = [
        ("images", f"{images} ({manifest['quarantined']} quarantined)"),
        ("classes", f"{len(manifest['images_per_label'])} with images, of {len(manifest['classes'])}"),
        ("latents", f"{kind.told()}, both flips"),
        *((name, f"{value:.5f}") for name, value in kind.measured(manifest).items()),
        (
            "bytes",
            f"{total} in {len(manifest['shards'])} shards, {total / max(images, 1):.0f} an image",
        ),
        ("tokenizer", f"{manifest['tokenizer']['kind']} {manifest['tokenizer']['weights']}"),
        ("image size", f"{manifest['image_size']} px, ADM centre crop"),
        (
            "source",
            f"{source['format']}, {source['shards']} shards, digest {source['digest'][:16]}",
        ),
    ]
    if precision := manifest.get("precision"):
        errors = ", ".join(f"{name} {value:.2g}" for name, value in precision.items() if isinstance(value, float))
        rows.append(("precision", f"{precision['name']}; against fp32 on {precision['images']} images: {errors}"))
    text = f"latents {root}\n{table(rows, ('what', 'value'))}"
    header, statistics = kind.table(manifest)
    if statistics:
        text += "\n\n" + table(statistics, header)
    if "warning" in manifest:
        text += f"\n\nwarning: {manifest['warning']}"
    if manifest["quarantined"]:
        with (root / "quarantine.parquet").open("rb") as file:
            reasons = Counter(reason.split(":")[0] for reason in pq.read_table(file)["reason"].to_pylist())
        text += "\n\n" + table(reasons.most_common(), ("quarantined because", "images"))
    return text


def verify(root: UPath) -> int:
    """Re-read every shard and compare its bytes with the manifest; returns how many shards were checked.

    Raises InputError naming the first shards that differ.
    """
    manifest, faults = _manifest(root), []
    for shard in manifest["shards"]:
        path = root / "shards" / f"{shard['name']}.parquet"
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            faults.append(f"{path}: {error}")
            continue
        if found != shard["sha256"]:
            faults.append(f"{path}: its bytes differ from the manifest's sha256")
    if faults:
        raise InputError(
            f"{len(faults)} of {len(manifest['shards'])} shards are damaged: {'; '.join(faults[:3])}. "
            "Delete their records in commits/ and artifact.json, and tokenize again."
        )
    return len(manifest["shards"])


def require_store(root: UPath, kind: TokenKind, weights: TokenizerFile, classes: Sequence[str]) -> str:
    """Return the digest of the store's manifest, 16 digits.

    Raises InputError unless it holds these tokens of this tokenizer, labelled by these classes.
    """
    manifest = _manifest(root)
    for what, own, wanted in (
        ("latents are", manifest["layout"], kind.described()),
        ("tokenizer is", manifest["tokenizer"]["weights"], weights.hash),
        ("classes are", list(manifest["classes"]), list(classes)),
    ):
        if own != wanted:
            raise InputError(f"latents {root}: its {what} {str(own)[:200]}, the recipe's {str(wanted)[:200]}")
    what = {
        **manifest,
        "source": {name: of for name, of in manifest["source"].items() if name != "images"},
    }  # not where
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def images_of(root: UPath) -> Images:
    """Return the images that a store was made of: all of them, and held-out ones where they are a split of their own.

    Raises InputError where its manifest does not say where they are, or they are not there, or others by now.
    """
    source = _manifest(root)["source"]
    if "images" not in source:
        raise InputError(
            f"latents {root}: its manifest does not say where its images are ({source['format']}; made by other means, "
            "or earlier): name the images themselves"
        )
    files = replace(from_json(json.dumps(source["images"]), ImageFiles, str(root / MANIFEST)), heldout_share=0)
    try:
        found = scan_images(files)
    except InputError as error:
        raise InputError(f"latents {root}: the images that it was made of are not there: {error}") from None
    if found.all.digest != source["digest"]:
        raise InputError(f"latents {root}: the images at {files.path} are others than it was made of")
    return found


def _manifest(root: UPath) -> dict[str, Any]:
    try:
        return read_json(root / MANIFEST)
    except (OSError, ValueError):
        raise InputError(f"{root}: no latent store (no readable {MANIFEST})") from None
