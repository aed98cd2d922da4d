"""The latent store: Parquet shards anyone can read, a commit record for each, a manifest written last.

    shards/NAME.parquet    key, label, moments, moments_flip (fixed-size binary: float16, C-order)
    commits/NAME.json      rows, bytes, sha256, sums for the statistics, quarantined samples
    quarantine.parquet     shard, key, reason of every image set aside
    manifest.json          what the store holds, and the measured latent_scale; written last

The moments are stored uncompressed in one page a row group: latents do not compress, and the page can be
mapped into memory (`reader.py`). No time, host or path enters a shard, so its bytes are reproducible.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from infra.storage import read_json, write_atomic, write_json

SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 1024
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Layout:
    """Shape of one image's moments: (mean, log variance) along the channels, or the mean alone."""

    channels: int
    height: int
    width: int
    deterministic: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (2C or C, h, w)."""
        return (self.channels * (1 if self.deterministic else 2), self.height, self.width)

    @property
    def bytes(self) -> int:
        """Return the bytes of one image's moments in float16."""
        return int(np.prod(self.shape)) * 2


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
    """Per channel over latents of both flips: count, mean sum, square sum, variance sum."""
    quarantined: list[list[str]]
    """(key, reason)."""


def schema(layout: Layout) -> pa.Schema:
    """Return the Parquet schema; columns are required, so that values lie one after the other."""
    moments = pa.binary(layout.bytes)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("moments", moments, nullable=False),
            pa.field("moments_flip", moments, nullable=False),
        ],
        metadata={
            "moments": f"float16, C-order, shape {layout.shape}: "
            + ("mean" if layout.deterministic else "mean then log variance of the posterior, channel axis first"),
            "schema_version": str(SCHEMA_VERSION),
        },
    )


def to_table(
    layout: Layout, keys: Sequence[str], labels: Sequence[int], moments: np.ndarray, flipped: np.ndarray
) -> pa.Table:
    """Return a table of the store's schema; moments are float16 (N, 2C or C, h, w)."""

    def packed(values: np.ndarray) -> pa.Array:
        buffer = pa.py_buffer(np.ascontiguousarray(values, dtype=np.float16).tobytes())
        return pa.Array.from_buffers(pa.binary(layout.bytes), len(values), [None, buffer])

    columns = [pa.array(keys, pa.string()), pa.array(labels, pa.int32()), packed(moments), packed(flipped)]
    return pa.Table.from_arrays(columns, schema=schema(layout))


def to_moments(column: pa.ChunkedArray | pa.Array, layout: Layout) -> np.ndarray:
    """Return float16 (N, 2C or C, h, w) of a moments column, without copying where it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    values = np.frombuffer(array.buffers()[1] or b"", np.float16, count=-1)
    start, size = array.offset * layout.bytes // 2, len(array) * layout.bytes // 2
    return values[start : start + size].reshape(-1, *layout.shape)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the table as a Parquet file: moments plain and uncompressed in one page a row group."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer,
        row_group_size=ROW_GROUP_ROWS,
        compression={"key": "zstd", "label": "zstd", "moments": "none", "moments_flip": "none"},
        use_dictionary=["label"], data_page_size=1 << 30, write_statistics=["label"],
    )  # fmt: skip
    return buffer.getvalue()


def commit_shard(
    root: UPath, name: str, table: pa.Table, layout: Layout, quarantined: Sequence[tuple[str, str]]
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
        sums=_sums([to_moments(table[column], layout) for column in ("moments", "moments_flip")], layout),
        quarantined=[list(pair) for pair in quarantined],
    )
    write_json(root / "commits" / f"{name}.json", asdict(commit))


def _sums(moments: Sequence[np.ndarray], layout: Layout) -> dict[str, list[float]]:
    """Return per-channel float64 sums from which the statistics of all shards follow."""
    channels = layout.channels
    sums = {name: np.zeros(channels) for name in ("count", "mean", "square", "variance")}
    for block in moments:
        mean = block[:, :channels].astype(np.float64)
        sums["count"] += len(mean) * layout.height * layout.width
        sums["mean"] += mean.sum((0, 2, 3))
        sums["square"] += np.square(mean).sum((0, 2, 3))
        if not layout.deterministic:
            sums["variance"] += np.exp(np.clip(block[:, channels:].astype(np.float64), -30, 20)).sum((0, 2, 3))
    return {name: values.tolist() for name, values in sums.items()}


def committed(root: UPath) -> dict[str, ShardCommit]:
    """Return the records of finished shards by name."""
    folder = root / "commits"
    if not folder.exists():
        return {}
    return {path.stem: ShardCommit(**read_json(path)) for path in sorted(folder.glob("*.json"), key=str)}


def publish(root: UPath, names: Sequence[str], layout: Layout, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write the quarantine table and the manifest of the shards `names`, all committed; returns the manifest."""
    commits = committed(root)
    chosen = [commits[name] for name in names]
    sums = {key: np.sum([commit.sums[key] for commit in chosen], axis=0) for key in chosen[0].sums}
    mean = sums["mean"] / sums["count"]
    variance = sums["square"] / sums["count"] - mean**2 + sums["variance"] / sums["count"]
    total = sums["mean"].sum() / sums["count"].sum()
    overall = (sums["square"].sum() + sums["variance"].sum()) / sums["count"].sum() - total**2
    rejected = [(commit.name, key, reason) for commit in chosen for key, reason in commit.quarantined]
    quarantine = pa.table(
        {
            name: pa.array([row[column] for row in rejected], pa.string())
            for column, name in enumerate(("shard", "key", "reason"))
        }
    )
    buffer = io.BytesIO()
    pq.write_table(quarantine, buffer)
    write_atomic(root / "quarantine.parquet", buffer.getvalue())
    labels: dict[str, int] = {}
    for commit in chosen:
        for label, count in commit.labels.items():
            labels[label] = labels.get(label, 0) + count
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "layout": asdict(layout),
        "images": sum(commit.rows for commit in chosen),
        "quarantined": len(rejected),
        "images_per_label": dict(sorted(labels.items(), key=lambda item: int(item[0]))),
        "latent_scale": float(1 / np.sqrt(overall)),
        "channel_mean": mean.tolist(),
        "channel_std": np.sqrt(variance).tolist(),
        "bytes": sum(commit.bytes for commit in chosen),
        "shards": [{"name": c.name, "rows": c.rows, "bytes": c.bytes, "sha256": c.sha256} for c in chosen],
        **provenance,
    }
    write_json(root / MANIFEST, manifest)
    return manifest
