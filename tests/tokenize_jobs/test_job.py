"""The tokenization job on a real Ray cluster: resumed bytes, quarantine, the limit on bad images."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data

from infra.cluster import Compute, Stage
from infra.errors import InputError
from infra.storage import location
from tests.tokenize_jobs.test_sources import GOOD, write_tar
from tokenize_jobs.config import Tokenize, TokenizerFile
from tokenize_jobs.job.latents_job import kind_of, tokenize
from tokenize_jobs.sources.crop import centre_crop, decode
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.store.audit import describe, images_of
from tokenize_jobs.store.reader import LatentStore

pytestmark = pytest.mark.ray
WEIGHTS = TokenizerFile("pixels", "", "pixels")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for shard in range(3):
        samples = [
            (f"{shard}-{i}.{suffix}", content) for i in range(300) for suffix, content in (("png", GOOD), ("cls", b"1"))
        ]
        write_tar(folder / f"s{shard}.tar", [*samples, (f"{shard}-bad.png", b"broken"), (f"{shard}-bad.cls", b"1")])
    return scan(str(folder), 2)


def hashes(store):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.rglob("*")) if p.is_file()}


def test_job_fails_on_many_bad_images_goes_on_and_ends_with_the_same_bytes_after_an_interruption(
    cluster, source, tmp_path, capfd
):
    config, store = Tokenize(image_size=16), location(tmp_path / "store")
    with pytest.raises(InputError, match=r"3 of 903 images are bad.*s0 0-bad: cannot be decoded"):
        tokenize(Tokenize(image_size=16, max_bad_fraction=0.001), WEIGHTS, source, store, Compute())
    assert not (store / "manifest.json").exists()
    finished = [path for folder in ("shards", "commits") for path in (store / folder).iterdir()]
    shards = {path: path.stat().st_mtime_ns for path in finished}
    assert len(shards) == 6
    measured = tokenize(config, WEIGHTS, source, store, Compute())
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert (measured.images, measured.quarantined) == (900, 3)
    whole = hashes(store)
    assert not (store / "staging").exists()
    assert "constructor arguments in the object store" not in capfd.readouterr().err  # of actors, which may lose them
    for name in ("manifest.json", "quarantine.parquet", "commits/s1.json"):
        (store / name).unlink()
    (store / "staging" / "dead").mkdir(parents=True)
    (store / "staging" / "dead" / "000000-000000.parquet").write_bytes(b"half")
    tokenize(config, WEIGHTS, source, store, Compute())
    assert hashes(store) == whole

    expected = centre_crop(decode(GOOD), 16).astype(np.float32) / 127.5 - 1
    latents = LatentStore(store)
    plain, flipped = (latents.stored(np.array([5]), np.array([flip]))[0].transpose(1, 2, 0) for flip in (0, 1))
    np.testing.assert_allclose(plain, expected, atol=1e-3)
    assert np.array_equal(plain[:, ::-1], flipped)
    read = ray.data.read_parquet(str(store / "shards"))
    assert read.count() == 900
    assert set(read.schema().names) == {"key", "label", "moments", "moments_flip"}
    rows = pq.read_table(str(store / "quarantine.parquet")).to_pylist()
    assert [(row["shard"], row["key"]) for row in rows] == [(f"s{i}", f"{i}-bad") for i in range(3)]


def test_job_with_no_core_left_to_read_for_its_encoders_is_refused(cluster, source, tmp_path):
    import ray

    cores = int(ray.cluster_resources()["CPU"])
    with pytest.raises(
        InputError, match=rf"--compute\.encode\.workers {cores} x 1 cores .*: reading for them takes a core more"
    ):
        tokenize(
            Tokenize(image_size=16),
            WEIGHTS,
            source,
            location(tmp_path / "store"),
            Compute(encode=Stage(workers=cores, cpus=1)),
        )


def test_layout_size_that_the_stride_does_not_divide_is_refused(tmp_path):
    from tokenize_jobs.tokenizers.small import Shape
    from tokenize_jobs.tokenizers.small_kl import SmallKL

    SmallKL(Shape(stride=4, channels=4, width=8, depth=1)).write(tmp_path)
    with pytest.raises(InputError, match="nearest sizes are 32 and 36"):
        kind_of(TokenizerFile("fit", str(tmp_path)), 34)


def test_store_keeps_the_error_of_its_precision(cluster, source, tmp_path):
    from tokenize_jobs.tokenizers.small_kl import Shape, SmallKL

    SmallKL(Shape(stride=4, channels=4, width=8, depth=1)).write(tmp_path / "fitted")
    weights, store = TokenizerFile("fitted", str(tmp_path / "fitted"), "w"), location(tmp_path / "store")
    few = replace(source, shards=source.shards[:1])
    tokenize(Tokenize(image_size=16, precision="bf16"), weights, few, store, Compute())
    kept = LatentStore(store).manifest["precision"]
    assert (kept["name"], kept["images"]) == ("bf16", 32)
    assert images_of(store).all.digest == source.digest  # few of its shards, as a listing that was not cut would have
    assert 0 < kept["relative_rms"] < kept["relative_largest"] < 1
    assert "bf16; against fp32 on 32 images: relative_largest" in describe(store)
