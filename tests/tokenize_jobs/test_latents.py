"""The latent store without Ray: what is written is read back bit-equal, by us and by anyone."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from infra.storage import location, read_json
from tests.tokenize_jobs.counted import counted
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.store import shards
from tokenize_jobs.store.audit import describe, verify
from tokenize_jobs.store.reader import LatentStore, _epoch_order
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokens import GaussianLatents

LAYOUT = GaussianLatents(4, 3, 3)
ROWS = 1500  # more than one row group


@pytest.fixture
def moments():
    return np.random.default_rng(0).standard_normal((2, ROWS, *LAYOUT.shape)).astype(np.float16)


@pytest.fixture
def store(tmp_path, moments):
    root = location(tmp_path / "store")
    for name, rows in (("b", slice(700, ROWS)), ("a", slice(0, 700))):
        keys, labels = [f"k{i}" for i in range(ROWS)[rows]], list(np.arange(ROWS)[rows] % 5)
        commit_shard(
            root, name, to_table(LAYOUT, keys, labels, moments[0, rows], moments[1, rows]), LAYOUT, [("x", "bad: y")]
        )
    provenance = {
        "tokenizer": {"kind": "pixels", "weights": "w"}, "image_size": 3, "classes": list("abcde"),
        "source": {"format": "webdataset", "shards": 2, "digest": "d" * 64, "bytes": 1},
    }  # fmt: skip
    publish(root, ["a", "b"], LAYOUT, provenance)
    return root


def test_moments_are_read_back_bit_equal_and_mapped(store, moments):
    opened = LatentStore(store)
    indices, flips = np.random.default_rng(1).permutation(ROWS), np.arange(ROWS) % 2
    assert np.array_equal(opened.stored(indices, flips), moments[flips, indices])
    assert np.array_equal(opened.labels, np.arange(ROWS) % 5)
    assert not any(column.flags.owndata or column.flags.writeable for pair in opened._values for column in pair)


def test_remote_store_fetches_the_rows_asked_for_once_and_shares_them(store, moments, tmp_path, monkeypatch):
    remote = location(f"memory://{tmp_path.name}/store")
    remote.fs.put(f"{store}/", remote.path, recursive=True)
    fetched = []
    cat_ranges = type(remote.fs).cat_ranges

    def counted(self, paths, starts, ends, **options):
        fetched.append(sum(end - start for start, end in zip(starts, ends, strict=True)))
        return cat_ranges(self, paths, starts, ends, **options)

    monkeypatch.setattr(type(remote.fs), "cat_ranges", counted)
    cache = tmp_path / "cache"
    opened, sibling = LatentStore(remote, cache), LatentStore(remote, cache)
    local = LatentStore(store)
    assert np.array_equal(opened.labels, local.labels)
    assert np.array_equal(opened.batch(0, range(40)).latents, local.batch(0, range(40)).latents)
    assert fetched == [40 * LAYOUT.bytes]
    assert np.array_equal(sibling.batch(0, range(50)).latents, local.batch(0, range(50)).latents)
    assert fetched == [40 * LAYOUT.bytes, 10 * LAYOUT.bytes]
    indices, flips = np.random.default_rng(1).permutation(ROWS), np.arange(ROWS) % 2
    assert np.array_equal(opened.stored(indices, flips), moments[flips, indices])


def test_opening_a_remote_store_looks_up_nothing_but_the_files_that_it_reads(store, tmp_path, monkeypatch):
    remote = location(f"memory://{tmp_path.name}/store")
    remote.fs.put(f"{store}/", remote.path, recursive=True)
    counts = counted(monkeypatch)
    LatentStore(remote, tmp_path / "cache")
    assert sorted(path.rsplit("/", 1)[1] for path in counts.looked_up) == ["a.parquet", "b.parquet", "manifest.json"]
    (remote / "shards" / "b.parquet").unlink()
    with pytest.raises(InputError, match=r"b\.parquet: missing or not \d+ bytes long; run `mar latents memory://"):
        LatentStore(remote, tmp_path / "cache")


def test_remote_shard_that_ends_too_early_is_an_error(store, tmp_path):
    remote = location(f"memory://{tmp_path.name}/short")
    remote.fs.put(f"{store}/", remote.path, recursive=True)
    opened = LatentStore(remote, tmp_path / "cache")
    (remote / "shards" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: ends before the manifest says"):
        opened.stored(np.arange(700), np.zeros(700, int))


def test_store_is_plain_parquet(store, moments):
    import duckdb

    table = pq.read_table(str(store / "shards" / "a.parquet"))
    first = np.frombuffer(table["moments"][0].as_py(), np.float16).reshape(LAYOUT.shape)
    assert np.array_equal(first, moments[0, 0])
    assert duckdb.sql(f"select count(*), max(label) from '{store}/shards/*.parquet'").fetchall() == [(ROWS, 4)]
    assert len(pd.read_parquet(str(store / "shards"))) == ROWS


def test_statistics_equal_those_computed_at_once(store, moments):
    manifest = LatentStore(store).manifest
    mean, logvar = (part.astype(np.float64) for part in np.split(moments.reshape(-1, *LAYOUT.shape), 2, axis=1))
    np.testing.assert_allclose(manifest["channel_mean"], mean.mean((0, 2, 3)), atol=1e-12)
    variance = mean.var() + np.exp(logvar).mean()
    assert manifest["latent_scale"] == pytest.approx(1 / np.sqrt(variance), rel=1e-9)


def test_batch_is_the_same_for_any_number_of_workers(store):
    opened = LatentStore(store)
    whole = opened.batch(3, range(1490, 1522))  # across the end of an epoch
    halves = [opened.batch(3, range(1490, 1506)), opened.batch(3, range(1506, 1522))]
    assert np.array_equal(whole.latents, np.concatenate([half.latents for half in halves]))
    assert np.array_equal(whole.labels, np.concatenate([half.labels for half in halves]))


def test_every_epoch_visits_every_image_once_in_another_order(store):
    opened = LatentStore(store)
    orders = [_epoch_order(0, epoch, len(opened)) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(ROWS)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])


def test_drawn_latents_have_the_posterior_moments_and_unit_scale(store):
    latents = LatentStore(store).batch(0, range(1500)).latents
    assert latents.std() == pytest.approx(1, abs=0.03)


def test_shard_bytes_do_not_depend_on_how_often_it_is_written(store, moments, tmp_path):
    first = hashlib.sha256((store / "shards" / "a.parquet").read_bytes()).hexdigest()
    keys, labels = [f"k{i}" for i in range(700)], list(np.arange(700) % 5)
    again = location(tmp_path / "again")
    commit_shard(
        again, "a", to_table(LAYOUT, keys, labels, moments[0, :700], moments[1, :700]), LAYOUT, [("x", "bad: y")]
    )
    assert hashlib.sha256((again / "shards" / "a.parquet").read_bytes()).hexdigest() == first


def test_bytes_an_image_are_within_two_per_cent_of_the_payload_for_kl16_latents(tmp_path):
    layout = GaussianLatents(16, 16, 16)
    values = np.random.default_rng(0).standard_normal((200, *layout.shape)).astype(np.float16)
    commit_shard(
        location(tmp_path),
        "a",
        to_table(layout, [f"n0/{i}" for i in range(200)], [0] * 200, values, values),
        layout,
        [],
    )
    size = json.loads((tmp_path / "commits" / "a.json").read_text())["bytes"]
    assert size / (200 * 2 * layout.bytes) < 1.02


def test_images_that_are_held_back_are_no_images_of_the_opened_store(store, moments):
    rule = Heldout(0.2)
    shards = ["a" if row < 700 else "b" for row in range(ROWS)]
    kept = [row for row in range(ROWS) if not rule.holds(shards[row], f"k{row}")]
    opened = LatentStore(store, heldout=rule)
    assert len(opened) == len(kept)
    assert opened.held_back == ROWS - len(kept) > 200
    assert np.array_equal(opened.labels, np.array(kept) % 5)
    assert np.array_equal(opened.stored(np.arange(len(kept)), np.zeros(len(kept), int)), moments[0, kept])
    assert np.array_equal(opened.batch(0, range(9)).labels, np.array(kept)[_epoch_order(0, 0, len(kept))[:9]] % 5)


def test_store_of_which_everything_is_held_back_is_refused(store):
    with pytest.raises(InputError, match="all 1500 images are held back"):
        LatentStore(store, heldout=Heldout(1 - 1e-9))


def test_damage_is_found(store):
    assert verify(store) == 2
    assert "1500 (2 quarantined)" in describe(store)
    path = store / "shards" / "b.parquet"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="1 of 2 shards are damaged"):
        verify(store)
    path.write_bytes(content[:-9])
    with pytest.raises(InputError, match="bytes long"):
        LatentStore(store)


def test_folder_without_a_manifest_is_no_store(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        LatentStore(str(tmp_path))


def test_open_store_holds_no_descriptor_however_many_shards_and_whether_local_or_fetched(tmp_path):
    root, values = location(tmp_path / "many"), np.zeros((1, *LAYOUT.shape), np.float16)
    names = [f"s{number:03d}" for number in range(40)]
    for name in names:
        commit_shard(root, name, to_table(LAYOUT, ["k"], [0], values, values), LAYOUT, [])
    publish(root, names, LAYOUT, {})
    remote = location(f"memory://{tmp_path.name}/many")
    remote.fs.put(f"{root}/", remote.path, recursive=True)
    LatentStore(root)  # imports what it needs
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = [LatentStore(root), LatentStore(remote, tmp_path / "cache")]
    assert [len(store.batch(0, range(40)).labels) for store in opened] == [40, 40]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_commit_records_are_read_at_the_same_time_and_known_ones_not_again(store, monkeypatch):
    arrived, read = threading.Barrier(2, timeout=20), []

    def waits_for_the_other(path):
        read.append(path.name)
        arrived.wait()  # one after the other would wait for ever
        return read_json(path)

    monkeypatch.setattr(shards, "read_json", waits_for_the_other)
    known = shards.committed(store)
    assert sorted(read) == ["a.json", "b.json"]
    publish(store, ["a", "b"], LAYOUT, {}, known)
    assert len(read) == 2
