"""Sources of which no picture can be used, or too few: said before anything is made, or with the record of all."""

import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.cluster import Compute
from infra.errors import InputError
from infra.storage import location
from pipeline.make import chosen_run
from tests.tokenize_jobs.test_sources import GOOD, encoded, write_tar
from tokenize_jobs.config import FitTokenizer, Tokenize, TokenizerFile
from tokenize_jobs.job import fit_job, latents_job
from tokenize_jobs.sources import survey
from tokenize_jobs.sources.listing import Images, scan
from tokenize_jobs.store.shards import commit_shard, to_table

CONFIG, WEIGHTS = Tokenize(image_size=16), TokenizerFile("pixels", "", "pixels")
SHARDS, IMAGES = 20, 40
TINY = encoded(Image.new("RGB", (4, 4)))


class Started(Exception):
    """The job would begin."""


@pytest.fixture
def opened(monkeypatch):
    """Count the pictures that are opened to look at them; a job that begins raises Started."""
    count, decode = [], survey.decode

    def counted(content):
        count.append(content)
        return decode(content)

    def begins(compute):
        raise Started

    monkeypatch.setattr(survey, "decode", counted)
    for job in (latents_job, fit_job):
        monkeypatch.setattr(job, "connected", begins)
    return count


@pytest.fixture
def bad(tmp_path):
    """A source of corrupt and tiny pictures."""
    (tmp_path / "bad").mkdir()
    for shard in range(SHARDS):
        members = [
            (f"{shard}-{i}.{s}", c)
            for i in range(IMAGES)
            for s, c in (("png", TINY if i % 2 else b"broken"), ("cls", b"1"))
        ]
        write_tar(tmp_path / "bad" / f"s{shard:02d}.tar", members)
    return scan(str(tmp_path / "bad"), 2)


SAID = r"not one of 256 pictures opened can be used, \d+-\d+ among them .*128 x cannot be .*128 x too small: 4x4 pixels"


def test_source_without_a_usable_picture_is_refused_before_a_shard_is_read(bad, opened, tmp_path):
    with pytest.raises(InputError, match=SAID):
        latents_job.tokenize(CONFIG, WEIGHTS, bad, location(tmp_path / "store"), Compute())
    with pytest.raises(InputError, match=SAID):
        fit_job.fit_tokenizer(FitTokenizer(), Images(bad, None, bad, ""), 16, location(tmp_path / "fit"), Compute())
    with pytest.raises(InputError, match=SAID):
        chosen_run("run", ["images-64", "--images.path", bad.root, "--images.num-classes", "2"])
    assert len(opened) == 3 * survey.MOST_OPENED
    assert not [path for name in ("store", "fit") for path in (tmp_path / name).rglob("*")]


@pytest.mark.parametrize("seed", range(3))
def test_only_shard_with_one_usable_picture_anywhere_is_taken(tmp_path, seed):
    place = random.Random(seed).randrange(3 * survey.MOST_OPENED)
    members = [(f"{i}.png", GOOD if i == place else TINY) for i in range(3 * survey.MOST_OPENED)]
    write_tar(
        tmp_path / "only.tar", [of for name, content in members for of in ((name, content), (f"{name[:-4]}.cls", b"1"))]
    )
    survey.require_usable(scan(str(tmp_path / "only.tar"), 2))


def test_look_ends_with_the_first_usable_picture_and_is_not_taken_where_shards_have_some(bad, opened, tmp_path):
    write_tar(tmp_path / "bad" / "s00.tar", [("x.png", GOOD), ("x.cls", b"1")])
    survey.require_usable(scan(f"{tmp_path}/bad/s00.tar", 2))
    assert len(opened) == 1
    store, kind = location(tmp_path / "store"), latents_job.kind_of(WEIGHTS, 16)
    values = np.zeros((1, *kind.shape), kind.dtype)
    commit_shard(store, "s00", to_table(kind, ["x"], [1], values, values), kind, [])
    with pytest.raises(Started):
        latents_job.tokenize(CONFIG, WEIGHTS, bad, store, Compute())
    assert len(opened) == 1


def test_source_of_too_many_bad_pictures_leaves_their_record_and_its_shards(bad, tmp_path):
    store, kind = location(tmp_path / "store"), latents_job.kind_of(WEIGHTS, 16)
    values = np.zeros((1, *kind.shape), kind.dtype)
    for shard in bad.shards:
        commit_shard(store, shard.name, to_table(kind, ["x"], [1], values, values), kind, [("y", "too small")])
    with pytest.raises(InputError, match=r"20 of 40 images are bad.* All are in (\S+/quarantine\.parquet)") as refused:
        latents_job.tokenize(CONFIG, WEIGHTS, bad, store, Compute())
    rows = pq.read_table(store / "quarantine.parquet").to_pylist()
    assert rows == [{"shard": shard.name, "key": "y", "reason": "too small"} for shard in bad.shards]
    assert str(store / "quarantine.parquet") in str(refused.value)
    assert len(list((store / "commits").iterdir())) == SHARDS
    assert not (store / "manifest.json").exists()
