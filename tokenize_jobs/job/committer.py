"""The actor of the tokenization job that turns the staged parts of a shard into the shard. Imports no torch."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import location
from tokenize_jobs.store.shards import MANIFEST, commit_shard, to_table
from tokenize_jobs.tokens import TokenKind


class Committer:
    """A process for many shards: a task for each would start as many, and take the encoders' cores."""

    def __init__(self, out: str, kind: TokenKind) -> None:
        self.root, self.kind = location(out), kind

    def commit(self, name: str, paths: list[str], quarantined: list[tuple[str, str]]) -> None:
        """Join the staged parts of a shard, commit it and drop the parts."""
        try:
            tables = []
            for path in map(location, paths):
                with path.open("rb") as file:
                    tables.append(pq.read_table(file))
        except FileNotFoundError:
            if (self.root / MANIFEST).exists() or (self.root / "commits" / f"{name}.json").exists():
                return  # another job finished this store meanwhile, or this call is a repetition
            raise
        empty = np.zeros((0, *self.kind.shape), self.kind.dtype)
        table = pa.concat_tables(tables) if tables else to_table(self.kind, [], [], empty, empty)
        commit_shard(self.root, name, table.combine_chunks(), self.kind, quarantined)
        for path in map(location, paths):
            path.unlink(missing_ok=True)
