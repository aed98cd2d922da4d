"""What travels to the workers of the tokenization job, and shards that several committers join."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from infra.storage import location, write_atomic
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.job import latents_job
from tokenize_jobs.job.committer import Committer
from tokenize_jobs.job.parts import PartReader, Rates
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.sources.shard import Shard
from tokenize_jobs.store.shards import parquet_bytes, read_commits, to_table

KIND = latents_job.kind_of(TokenizerFile("pixels", "", "pixels"), 4)
SHARDS, PARTS, ROWS = 7, 3, 5


def test_reader_takes_no_more_bytes_for_a_million_files_than_for_one(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    one = scan(str(tmp_path))
    names = tuple(f"{number:08d}.png" for number in range(1_000_000))
    many = replace(one, shards=(Shard("all", names, (0,) * len(names), sizes=(1,) * len(names)),))
    sizes = [len(pickle.dumps(latents_job._HandingOn(PartReader(of, 64), []))) for of in (one, many)]
    assert sizes[0] == sizes[1] < 4096


class Remote:
    """A committer whose calls run in threads, as many at once as the job's."""

    def __init__(self, out, pool):
        self.committer, self.names, self.pool = Committer(str(out), KIND), [], pool
        self.commit = SimpleNamespace(remote=self._remote)

    def _remote(self, name, paths, quarantined):
        self.names.append(name)
        return self.pool.submit(self.committer.commit, name, paths, quarantined)


def staged(folder, order):
    """Yield the rows of staged parts in this order, as the encoders return them."""
    for place in order:
        shard, index = divmod(place, PARTS)
        keys = [f"{shard}-{index}-{row}" for row in range(ROWS)]
        values = np.random.default_rng(place).standard_normal((2, ROWS, *KIND.shape)).astype(KIND.dtype)
        path = folder / f"{place}.parquet"
        write_atomic(path, parquet_bytes(to_table(KIND, keys, [shard] * ROWS, *values)))
        yield {
            "fault": "", "shard": shard, "index": index, "last": index == PARTS - 1, "rows": ROWS, "path": str(path),
            "rejected_keys": [f"bad-{index}"], "rejected_reasons": ["too small"], "started": 1.0, "stopped": 2.0,
        }  # fmt: skip


@pytest.fixture
def joined(tmp_path, monkeypatch):
    """Return a function that commits the parts, in a seeded order, by so many committers; gives bytes and names."""
    monkeypatch.setattr(latents_job, "ray", SimpleNamespace(
        wait=lambda calls, num_returns, timeout: ([call for call in calls if call.done()], [call for call in calls if not call.done()]),
        get=lambda calls: [call.result() for call in calls],
    ))  # fmt: skip

    def run(count, seed):
        out, folder = location(tmp_path / f"{count}-{seed}"), location(tmp_path / "staging")
        pending = [Shard(f"s{number}", (f"s{number}.tar",)) for number in range(SHARDS)]
        order = np.random.default_rng(seed).permutation(SHARDS * PARTS).tolist()
        with ThreadPoolExecutor(4 * count) as pool:
            committers = [Remote(out, pool) for _ in range(count)]
            latents_job._commit_all(staged(folder, order), pending, committers, Rates(1))
        assert not list(folder.iterdir())
        files = {path.name: path.read_bytes() for name in ("shards", "commits") for path in (out / name).iterdir()}
        return files, [sorted(of.names) for of in committers], read_commits(out, [shard.name for shard in pending])

    return run


def test_shards_are_the_same_whatever_the_number_of_committers_and_each_is_joined_once(joined):
    expected, (all_of_one,), commits = joined(1, 0)
    assert all_of_one == [f"s{number}" for number in range(SHARDS)]
    assert {commit.rows for commit in commits.values()} == {PARTS * ROWS}
    assert commits["s3"].quarantined == [[f"bad-{index}", "too small"] for index in range(PARTS)]
    for count, seed in ((3, 0), (3, 1), (10, 2)):
        found, names, _ = joined(count, seed)
        assert found == expected
        assert sorted(name for of in names for name in of) == all_of_one
        assert sum(bool(of) for of in names) == min(count, SHARDS)
