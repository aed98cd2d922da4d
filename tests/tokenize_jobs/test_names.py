"""Files by their names: some are no UTF-8, some are hidden, some describe others, and no two are taken for one."""

import os
import sys

import numpy as np
import pytest

from infra.console import printing, say
from infra.errors import InputError
from tests.tokenize_jobs.test_sources import write_tar
from tests.tokenize_jobs.test_splits import class_folders, labels_by_key, picture, tar
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.sources.labels import Labels, is_number
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.sources.samples import read_shard
from tokenize_jobs.store.shards import to_table
from tokenize_jobs.tokens import GaussianLatents

KIND = GaussianLatents(4, 3, 3)
LATIN = os.fsdecode(os.fsencode("a") + b"\xe9")
"""A name that another system wrote, in Latin-1: in Python it has a surrogate."""
TOLD = "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("layout", ["folders", "flat", "tar"])
def test_names_that_are_no_utf_8_are_listed_read_held_out_stored_and_printed(layout, tmp_path, monkeypatch):
    if layout == "tar":
        tar(tmp_path / f"{LATIN}.tar", ["x"])
    else:
        folder = tmp_path / LATIN if layout == "folders" else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / f"{LATIN}.png").write_bytes(picture(1))
    images = scan_images(ImageFiles(path=str(tmp_path), num_classes=1, heldout_share=0.5))
    found = [sample for shard in images.all.shards for sample in read_shard(images.all, shard)]
    key = {"folders": f"{TOLD}/{TOLD}.png", "flat": f"{TOLD}.png", "tar": "x"}[layout]
    assert [(sample.key, sample.label, sample.fault) for sample in found] == [(key, 0, "")]
    assert images.all.classes == {"folders": (TOLD,), "flat": ("image",), "tar": ("0",)}[layout]
    (shard,) = images.all.shards
    shard.name.encode()
    sides = [list(read_shard(side, shard)) for side in (images.train, images.heldout)]
    assert [len(side) for side in sides] == [
        not Heldout(0.5).holds(shard.name, key),
        Heldout(0.5).holds(shard.name, key),
    ]
    values = np.zeros((1, *KIND.shape), np.float16)
    assert to_table(KIND, [found[0].key], [0], values, values)["key"].to_pylist() == [key]
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with printing():
            say(shard.files[0])
    assert rb"a\udce9" in (tmp_path / "out.txt").read_bytes()


def test_two_class_folders_that_read_alike_are_refused(tmp_path):
    class_folders(tmp_path, [LATIN, os.fsdecode(b"a\xe8")])
    with pytest.raises(InputError, match=r"is no UTF-8 and reads as another does"):
        scan(str(tmp_path))


@pytest.mark.parametrize("named", ["", "/*", "/{cat,dog,.ipynb_checkpoints,__MACOSX}"])
def test_hidden_files_are_neither_pictures_nor_classes_unless_they_are_named(named, tmp_path):
    class_folders(tmp_path, ["cat", "dog"])
    class_folders(tmp_path / ".ipynb_checkpoints", ["cat"])
    class_folders(tmp_path / "__MACOSX", ["cat"])
    (tmp_path / "cat" / "._0.png").write_bytes(picture(3))
    (tmp_path / "cat" / ".cache").mkdir()
    (tmp_path / "cat" / ".cache" / "1.png").write_bytes(picture(3))
    if "{" not in named:
        assert scan(f"{tmp_path}{named}").classes == ("cat", "dog")
        assert list(labels_by_key(scan(f"{tmp_path}{named}"))) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    else:
        assert scan(f"{tmp_path}{named}").classes == (".ipynb_checkpoints", "__MACOSX", "cat", "dog")
    assert list(labels_by_key(scan(str(tmp_path / "cat" / "._0.png")))) == ["._0.png"]
    assert list(labels_by_key(scan(str(tmp_path / "cat" / ".cache")))) == ["1.png"]


def test_tables_beside_img2datasets_tars_are_their_metadata(tmp_path):
    for number in range(2):
        tar(tmp_path / f"{number:05d}.tar", [f"{number}"])
        (tmp_path / f"{number:05d}.parquet").write_bytes(bytes(100_000))
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    assert labels_by_key(scan(str(tmp_path), 1)) == {"0": 0, "1": 0}
    (tmp_path / "other.parquet").write_bytes(bytes(100_000))
    with pytest.raises(InputError, match=r"mixes layouts.* 1 others hold pictures too, as other\.parquet"):
        scan(str(tmp_path), 1)


def test_second_image_of_one_name_in_a_tar_has_its_record(tmp_path):
    members = [("1.jpg", picture(1)), ("1.png", picture(2)), ("1.cls", b"0"), ("2.png", picture(3)), ("2.cls", b"0")]
    write_tar(tmp_path / "a.tar", members)
    listing = scan(str(tmp_path), 1)
    found = list(read_shard(listing, listing.shards[0]))
    assert [(sample.key, sample.fault) for sample in found] == [
        ("1", ""), ("1", "duplicate id: a .png beside another image of this name"), ("2", "")
    ]  # fmt: skip
    assert found[0].content == picture(1)


@pytest.mark.parametrize("digits", [5, 19, 5000])
def test_label_of_any_number_of_digits_is_a_number_or_the_name_of_no_class(digits):
    assert is_number("9" * digits) == (digits == 5)
    label = Labels().of("x", "9" * digits, {})
    assert label == (99999 if digits == 5 else "9" * digits)
