"""Traps on the way into a store: layouts mixed, sources changed after they were listed, labels that are names, damage."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import InputError
from infra.storage import location
from tests.tokenize_jobs.test_sources import PIXELS, encoded
from tests.tokenize_jobs.test_splits import labels_by_key, picture, tar
from tests.tokenize_jobs.test_tar import random_damage
from tokenize_jobs.sources import digest
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.sources.samples import read_shard
from tokenize_jobs.sources.shard import UNKNOWN, Shard


def test_source_that_mixes_layouts_is_refused_and_a_pattern_names_one(tmp_path):
    tar(tmp_path / "a.tar", ["x"], label=0)
    pq.write_table(pa.table({"image": [picture(1)], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"mixes layouts: 1 files are read as webdataset, as a\.tar, and 1 others"):
        scan(str(tmp_path), 1)
    assert labels_by_key(scan(str(tmp_path / "*.parquet"), 1)) == {"000000": 0}


def test_small_picture_beside_tars_and_the_other_downloads_of_imagenet_are_passed_over(tmp_path):
    tar(tmp_path / "a.tar", [f"x{n}" for n in range(200)], label=0)
    (tmp_path / "logo.png").write_bytes(picture(1))
    assert scan(str(tmp_path), 1).format == "webdataset"
    (tmp_path / "a.tar").rename(tmp_path / "ILSVRC2012_img_val.tar")
    from tests.tokenize_jobs.test_imagenet import packed

    inner = packed([("n1_0.JPEG", picture(1))])
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(packed([("n1.tar", inner)]))
    assert scan(str(tmp_path)).classes == ("n1",)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_file_that_changed_after_the_scan_is_named_instead_of_read(kind, tmp_path):
    if kind == "tar":
        tar(tmp_path / "a.tar", ["x"], label=0)
        path = tmp_path / "a.tar"
    else:
        path = tmp_path / "cat" / "a.png"
        path.parent.mkdir()
        path.write_bytes(picture(1))
    listing = scan(str(tmp_path), 1)
    assert len(list(read_shard(listing, listing.shards[0]))) == 1
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(OSError, match=rf"{path}: changed since the source was listed: it had \d+ bytes"):
        list(read_shard(listing, listing.shards[0]))


def test_file_whose_size_no_one_tells_is_read():
    shard = Shard("a", ("x", "y"), sizes=(UNKNOWN, 7))
    for place, found in ((0, 5), (1, 7)):
        shard.require_size(place, location("x"), found)
    with pytest.raises(OSError, match="changed since"):
        shard.require_size(1, location("y"), 8)


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_names_in_a_column_of_labels_are_the_classes_sorted_over_all_tables(as_dictionary, tmp_path):
    for name, labels in (("a", ["oak", "ash"]), ("b", ["yew", "oak"])):
        column = pa.array(labels)
        table = pa.table({"image": [picture(1)] * 2, "label": column.dictionary_encode() if as_dictionary else column})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    listing = scan(str(tmp_path))
    assert listing.classes == ("ash", "oak", "yew")
    found = [sample.label for shard in listing.shards for sample in read_shard(listing, shard)]
    assert found == [1, 0, 2, 1]


@pytest.mark.parametrize(("labels", "classes"), [([3, 1], 4), ([-1, 0], 1), ([-1, -1], 0), ([20_260_131, 0], 0)])
def test_numbers_in_a_column_of_labels_are_classes_up_to_the_largest(labels, classes, tmp_path):
    pq.write_table(pa.table({"image": [picture(1)] * 2, "label": labels}), tmp_path / "a.parquet")
    if classes:
        assert scan(str(tmp_path)).classes == tuple(map(str, range(classes)))
        return
    with pytest.raises(InputError, match=r"how many classes.*--images\.num-classes"):
        scan(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": ["a"]}, r"no column 'label'; there are image, kind\. Choose with --images\.label kind, or none if"),
        ({"thumb": [b"x"]}, r"no column 'label'; .* Say --images\.label none if the pictures have no labels"),
        ({"label": [{"name": "a"}]}, r"column 'label' holds struct<name: string>; a label is a number or a text\. Say"),
        ({"label": [[1]], "tag": [1]}, r"column 'label' holds list<.*; .* Choose with --images\.label tag, or none"),
        ({"label": [0.5]}, r"column 'label' holds double"),
    ],
)
def test_column_of_images_is_never_advised_for_labels_and_one_of_structs_is_refused(columns, message, tmp_path):
    pq.write_table(pa.table({"image": [picture(1)], **columns}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        scan(str(tmp_path))
    assert labels_by_key(scan_images(ImageFiles(path=str(tmp_path), label="none")).all) == {"000000": 0}


def test_column_that_holds_structs_in_a_later_table_costs_that_table(tmp_path):
    pq.write_table(pa.table({"image": [picture(1)], "label": ["oak"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [picture(1)], "label": [{"name": "a"}]}), tmp_path / "b.parquet")
    listing = scan(str(tmp_path))
    assert listing.classes == ("oak",)
    found = [(s.label, s.fault) for shard in listing.shards for s in read_shard(listing, shard)]
    assert found == [(0, ""), (-1, "no label")]


def test_digest_of_many_files_is_kept_while_names_sizes_and_times_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "_MANY", 4)
    (tmp_path / "in").mkdir()
    for number in range(6):
        tar(tmp_path / "in" / f"{number}.tar", [f"x{number}"], label=0)
    read, ends = [], digest._ends

    def counted(root, names, infos):
        read.append(len(names))
        return ends(root, names, infos)

    monkeypatch.setattr(digest, "_ends", counted)
    digests = [scan(str(tmp_path / "in"), 1).digest for _ in range(2)]
    assert read == [6]
    path = tmp_path / "in" / "3.tar"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert scan(str(tmp_path / "in"), 1).digest != digests[0] == digests[1]
    assert read == [6, 6]
    monkeypatch.setattr(digest, "_MANY", 1000)
    path.write_bytes(bytes([content[0] ^ 1]) + bytes(content[1:]))
    assert scan(str(tmp_path / "in"), 1).digest == digests[0]


FORMS = {
    "jpeg": encoded(Image.fromarray(PIXELS), "JPEG"),
    "progressive": encoded(Image.fromarray(PIXELS), "JPEG", progressive=True),
    "png": encoded(Image.fromarray(PIXELS)),
    "palette": encoded(Image.fromarray(PIXELS).convert("P")),
    "webp": encoded(Image.fromarray(PIXELS), "WEBP"),
    "animated": encoded(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
}


def outcome(content):
    """Return the shape of the crop, or the reason to set the image aside."""
    try:
        return centre_crop(decode(content), 16).shape
    except BadImage as error:
        return str(error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.chaos)])
def test_image_damaged_anywhere_is_cropped_or_set_aside_with_a_reason_that_a_record_takes(form, rounds):
    found = []
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        damaged = random_damage(FORMS[form], random).apply(FORMS[form], random)
        found.append(outcome(damaged))
        assert found[-1] == (16, 16, 3) or 0 < len(found[-1].encode()) <= 220, (form, seed)
        assert outcome(damaged) == found[-1], (form, seed)  # records must be reproducible
    assert len(set(found)) > 1
