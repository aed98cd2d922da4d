"""The latent store: Parquet shards anyone can read, a commit record for each, a manifest written last.

    shards/NAME.parquet    key, label, and a column of the token's kind with its mirror: moments, moments_flip, or
                           codes, codes_flip (fixed-size binary, C-order)
    commits/NAME.json      rows, bytes, sha256, sums for the statistics, quarantined samples
    quarantine.parquet     shard, key, reason of every image set aside
    manifest.json          what the store holds, and the statistics of its tokens; written last

The values are stored uncompressed in one page a row group: latents do not compress, and the page can be
mapped into memory (`reader.py`). No time, host or path enters a shard, so its bytes are reproducible.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from infra.storage import read_json, write_atomic, write_json
from tokenize_jobs.tokens import TokenKind

_READ_AT_ONCE = 64
SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 1024
MANIFEST, QUARANTINE = "manifest.json", "quarantine.parquet"


@dataclass(frozen=True)
class ShardCommit:
    """Record of one finished shard."""

    name: str
    rows: int
    bytes: int
    sha256: str
    labels: dict[str, int]
    """Images a label."""
    sums: dict[str, list[float]]
    """What the kind of token adds up over both flips."""
    quarantined: list[list[str]]
    """(key, reason)."""


def columns_of(kind: TokenKind) -> tuple[str, str]:
    """Return the names of the columns of values: of the images, and of their mirror images."""
    return kind.column, f"{kind.column}_flip"


def schema(kind: TokenKind) -> pa.Schema:
    """Return the Parquet schema; columns are required, so that values lie one after the other."""
    values = pa.binary(kind.bytes)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            *(pa.field(name, values, nullable=False) for name in columns_of(kind)),
        ],
        metadata={
            kind.column: f"{kind.dtype}, C-order, shape {kind.shape}: {kind.meaning}",
            "schema_version": str(SCHEMA_VERSION),
        },
    )


def to_table(
    kind: TokenKind, keys: Sequence[str], labels: Sequence[int], values: np.ndarray, flipped: np.ndarray
) -> pa.Table:
    """Return a table of the store's schema; values are (N, *kind.shape)."""

    def packed(values: np.ndarray) -> pa.Array:
        buffer = pa.py_buffer(np.ascontiguousarray(values, dtype=kind.dtype).tobytes())
        return pa.Array.from_buffers(pa.binary(kind.bytes), len(values), [None, buffer])

    columns = [pa.array(keys, pa.string()), pa.array(labels, pa.int32()), packed(values), packed(flipped)]
    return pa.Table.from_arrays(columns, schema=schema(kind))


def to_values(column: pa.ChunkedArray | pa.Array, kind: TokenKind) -> np.ndarray:
    """Return the values (N, *kind.shape) of a column, without copying where it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    values = np.frombuffer(array.buffers()[1] or b"", kind.dtype, count=-1)
    numbers = kind.bytes // kind.dtype.itemsize
    return values[array.offset * numbers : (array.offset + len(array)) * numbers].reshape(-1, *kind.shape)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the table as a Parquet file: values plain and uncompressed in one page a row group."""
    buffer = io.BytesIO()
    key, label, *values = table.column_names
    pq.write_table(
        table, buffer,
        row_group_size=ROW_GROUP_ROWS,
        compression={key: "zstd", label: "zstd", **dict.fromkeys(values, "none")},
        use_dictionary=[label], data_page_size=1 << 30, write_statistics=[label],
    )  # fmt: skip
    return buffer.getvalue()


def commit_shard(
    root: UPath, name: str, table: pa.Table, kind: TokenKind, quarantined: Sequence[tuple[str, str]]
) -> None:
    """Write a shard, then its record. Twice the same, or two at once, gives the same bytes."""
    content = parquet_bytes(table)
    write_atomic(root / "shards" / f"{name}.parquet", content)
    labels, counts = np.unique(table["label"].to_numpy(), return_counts=True)
    commit = ShardCommit(
        name=name,
        rows=table.num_rows,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        labels={str(label): int(count) for label, count in zip(labels, counts, strict=True)},
        sums=kind.sums([to_values(table[column], kind) for column in columns_of(kind)]),
        quarantined=[list(pair) for pair in quarantined],
    )
    write_json(root / "commits" / f"{name}.json", asdict(commit))


def committed(root: UPath) -> dict[str, ShardCommit]:
    """Return the records of finished shards by name."""
    folder = root / "commits"
    if not folder.exists():
        return {}
    return read_commits(root, sorted(path.stem for path in folder.glob("*.json")))


def read_commits(root: UPath, names: Sequence[str]) -> dict[str, ShardCommit]:
    """Return the records of these finished shards, many read at once: on an object store each takes a round trip."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        records = pool.map(lambda name: ShardCommit(**read_json(root / "commits" / f"{name}.json")), names)
        return dict(zip(names, records, strict=True))


def write_quarantine(root: UPath, rejected: Sequence[tuple[str, str, str]]) -> None:
    """Write the table of what was set aside: (shard, key, reason) each."""
    names = ("shard", "key", "reason")
    table = {name: pa.array([row[column] for row in rejected], pa.string()) for column, name in enumerate(names)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    write_atomic(root / QUARANTINE, buffer.getvalue())


def publish(
    root: UPath,
    names: Sequence[str],
    kind: TokenKind,
    provenance: Mapping[str, Any],
    known: Mapping[str, ShardCommit] | None = None,
) -> dict[str, Any]:
    """Write the quarantine table and the manifest of the shards `names`, all committed; returns the manifest.

    Records that are `known` are not read again.
    """
    known = known or {}
    found = {**known, **read_commits(root, [name for name in names if name not in known])}
    commits = [found[name] for name in names]
    sums = {key: np.sum([commit.sums[key] for commit in commits], axis=0) for key in commits[0].sums}
    rejected = [(commit.name, key, reason) for commit in commits for key, reason in commit.quarantined]
    write_quarantine(root, rejected)
    labels: dict[str, int] = {}
    for commit in commits:
        for label, count in commit.labels.items():
            labels[label] = labels.get(label, 0) + count
    statistics, images = kind.statistics(sums), sum(commit.rows for commit in commits)
    if warning := kind.warning(statistics, images):
        statistics["warning"] = warning
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "layout": kind.described(),
        "images": images,
        "quarantined": len(rejected),
        "images_per_label": dict(sorted(labels.items(), key=lambda item: int(item[0]))),
        **statistics,
        "bytes": sum(commit.bytes for commit in commits),
        "shards": [{"name": c.name, "rows": c.rows, "bytes": c.bytes, "sha256": c.sha256} for c in commits],
        **provenance,
    }
    write_json(root / MANIFEST, manifest)
    return manifest
