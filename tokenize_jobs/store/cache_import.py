"""A latent store from the published code's cache: CLASS/NAME.npz, each with arrays moments and moments_flip.

A shard is 1,024 files; those that are committed are not read again, so that an interrupted import goes on.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from upath import UPath

from infra.console import Progress
from infra.errors import InputError
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.folder import striding
from tokenize_jobs.sources.shard import Shard
from tokenize_jobs.store.shards import MANIFEST, columns_of, commit_shard, committed, publish, to_table
from tokenize_jobs.tokens import TokenKind

_AT_ONCE = 8
_MOST_BAD = 0.01


def import_cache(cache: UPath, weights: TokenizerFile, image_size: int, kind: TokenKind, root: UPath) -> dict[str, Any]:
    """Make the store `root` of the npz files below `cache`, which hold values of `kind`; returns its manifest.

    Raises InputError when there are none, `root` is a store already, or over 1 % of them cannot be used.
    """
    if (root / MANIFEST).exists():
        raise InputError(f"{root}: a latent store is there already; name another folder")
    files = _files(cache)
    classes = tuple(sorted({name.split("/")[0] for name in files}))
    numbers = {name: label for label, name in enumerate(classes)}
    digest = hashlib.sha256(json.dumps(list(files.items())).encode()).hexdigest()
    shards = [
        Shard(shard.name.replace("folder", f"npz-{digest[:8]}"), shard.files, shard.labels)
        for shard in striding(list(files), [numbers[name.split("/")[0]] for name in files])
    ]
    done, progress = committed(root), Progress("latents", len(shards), "shards")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        pending = [shard for shard in shards if shard.name not in done]
        for count, _ in enumerate(pool.map(lambda shard: _commit(cache, shard, kind, root), pending), 1):
            progress.update(len(shards) - len(pending) + count)
    _refuse_bad(cache, root, shards)
    source = {"format": "npz", "shards": len(shards), "digest": digest, "bytes": sum(files.values())}
    provenance = {
        "tokenizer": {"kind": weights.kind, "weights": weights.hash}, "image_size": image_size,
        "classes": list(classes), "source": source,
    }  # fmt: skip
    return publish(root, [shard.name for shard in shards], kind, provenance)


def _files(cache: UPath) -> dict[str, int]:
    """Return the size of each npz file by its sorted name. Raises InputError unless folders of classes hold them."""
    prefix = cache.path.rstrip("/") + "/"
    found = cache.fs.find(cache.path, detail=True)
    files = {n.removeprefix(prefix): int(i["size"]) for n, i in sorted(found.items()) if n.endswith(".npz")}
    if not files:
        raise InputError(f"{cache}: holds no .npz")
    if flat := [name for name in files if "/" not in name]:
        raise InputError(f"{cache}: {flat[0]} is in no folder of a class; the published cache is CLASS/NAME.npz")
    return files


def _commit(cache: UPath, shard: Shard, kind: TokenKind, root: UPath) -> None:
    keys, labels, bad = list[str](), list[int](), list[tuple[str, str]]()
    values: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name, label, found in _read(cache, shard, kind):
        if isinstance(found, str):
            bad.append((name, found))
            continue
        keys.append(name)
        labels.append(label)
        for column, array in zip(values, found, strict=True):
            column.append(array)
    empty = np.zeros((0, *kind.shape), kind.dtype)
    own, flipped = (np.stack(column) if column else empty for column in values)
    commit_shard(root, shard.name, to_table(kind, keys, labels, own, flipped), kind, bad)


def _read(cache: UPath, shard: Shard, kind: TokenKind) -> Iterator[tuple[str, int, list[np.ndarray] | str]]:
    """Yield key, label, and values of both flips, or why they cannot be used."""
    for name, label in zip(shard.files, shard.labels, strict=True):
        key, content = name.removesuffix(".npz"), (cache / name).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as saved:
                yield key, label, [_checked(saved[column], kind) for column in columns_of(kind)]
        except Exception as error:  # noqa: BLE001  zipfile, zlib and numpy each raise their own, and it lies in memory
            yield key, label, f"cannot be read: {error}"[:200]


def _checked(array: np.ndarray, kind: TokenKind) -> np.ndarray:
    """Return what is stored of an array.

    Raises ValueError for another shape, for what is not finite in store, and for what is none of the kind's choices.
    """
    if array.shape != kind.shape:
        raise ValueError(f"its shape is {array.shape}, not {kind.shape}")
    if (choices := kind.choices) is not None:
        if not ((array >= 0) & (array < choices) & (array == np.floor(array))).all():
            raise ValueError(f"holds what is no whole number from 0 to {choices - 1}")
        return array.astype(kind.dtype)
    with np.errstate(over="ignore"):
        stored = array.astype(kind.dtype)
    if not np.isfinite(stored).all():
        raise ValueError(f"holds what is no finite {kind.dtype}")
    return stored


def _refuse_bad(cache: UPath, root: UPath, shards: list[Shard]) -> None:
    commits = committed(root)
    bad = [pair for shard in shards for pair in commits[shard.name].quarantined]
    images = sum(len(shard.files) for shard in shards)
    if len(bad) > _MOST_BAD * images or len(bad) == images:
        raise InputError(f"{cache}: {len(bad)} of {images} files cannot be used; first: {': '.join(bad[0])}")
