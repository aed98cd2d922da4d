"""Labels from a named field or a named column: numbers, or names of classes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from infra.errors import InputError
from tests.tokenize_jobs.test_sources import write_tar
from tests.tokenize_jobs.test_splits import labels_by_key, picture, tar
from tokenize_jobs.sources import digest
from tokenize_jobs.sources import webdataset as layout
from tokenize_jobs.sources.listing import ImageFiles, scan_images
from tokenize_jobs.sources.samples import read_shard


def listed(path, **options):
    return scan_images(ImageFiles(path=str(path), heldout_share=0, **options)).all


def test_field_of_img2datasets_json_is_the_label_by_number_or_name(tmp_path):
    (tmp_path / "classes.tsv").write_text("0\tcat\n1\tdog\n")
    metas = [
        {"key": "0", "kind": "dog", "label": 0},
        {"key": "1", "kind": 1},
        {"key": "2", "kind": "emu"},
        {"key": "3"},
    ]
    members = [
        (f"{meta['key']}.{suffix}", content)
        for meta in metas
        for suffix, content in (("jpg", picture(1)), ("json", json.dumps(meta).encode()), ("txt", b"a caption"))
    ]
    write_tar(tmp_path / "00000.tar", members)
    listing = listed(tmp_path, label="kind")
    assert labels_by_key(listing) == {"0": 1, "1": 1}
    faults = [s.fault for s in read_shard(listing, listing.shards[0]) if s.fault]
    assert faults == ["label 'emu' is the name of no class", "no label"]
    assert labels_by_key(listed(tmp_path)) == {"0": 0}
    with pytest.raises(InputError, match=r"no field 'kinds' in .*there are key, kind, label. .*--images.label kind\."):
        listed(tmp_path, label="kinds")


def test_json_that_is_no_object_costs_its_own_sample_alone(tmp_path):
    (tmp_path / "classes.tsv").write_text("0\tcat\n1\tdog\n")
    contents = [b"[1]", b'"kind"', b"7", b"null", b"[" * 200_000, b'{"kind": 1}', b"\xff", b"", b'[{"kind": 1}]']
    random = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(b'{"key": "5", "kind": 1}')
        damaged[random.integers(len(damaged))] = random.integers(256)
        contents.append(bytes(damaged[: random.integers(1, len(damaged))]))
    members = [(f"{n}.{s}", c) for n, of in enumerate(contents) for s, c in (("jpg", picture(1)), ("json", of))]
    write_tar(tmp_path / "00000.tar", members)
    listing = listed(tmp_path, label="kind")
    assert labels_by_key(listing) == {"5": 1}
    assert len([s for s in read_shard(listing, listing.shards[0]) if s.fault]) == len(contents) - 1


def test_column_of_a_table_is_the_label_and_its_own_names_the_classes(tmp_path):
    features = {"fine": {"names": ["ash", "oak", "yew"], "_type": "ClassLabel"}}
    table = pa.table({"img": [picture(n) for n in range(3)], "fine": [2, 0, 1], "kind": ["oak", "yew", "elm"]})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    listing = listed(tmp_path, label="fine")
    assert listing.classes == ("ash", "oak", "yew")
    assert list(labels_by_key(listing).values()) == [2, 0, 1]
    (tmp_path / "classes.tsv").write_text("0\toak\n1\tyew\n")
    assert labels_by_key(listed(tmp_path, label="kind")) == {"000000": 0, "000001": 1}
    with pytest.raises(
        InputError, match=r"no column 'fin'; there are img, fine, kind. Choose with --images.label fine"
    ):
        listed(tmp_path, label="fin")


@pytest.fixture
def named(tmp_path):
    """Two shards as the webdataset library writes them, their labels texts: in .cls, in .txt and in .json."""
    for shard, names in enumerate((["oak", "ash", "yew"], ["fir", "7", "oak"])):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for place, name in enumerate(names):
                about = {"key": f"{shard}{place}", "kind": name.upper(), "caption": f"a photo of {name}"}
                tar.write(
                    {"__key__": f"{shard}{place}", "png": picture(9), "cls": name, "txt": name[::-1], "json": about}
                )
    return tmp_path


@pytest.mark.parametrize(
    ("label", "classes", "labels"),
    [
        ("label", ("ash", "fir", "oak", "yew"), [2, 0, 3, 1, None, 2]),
        ("txt", ("hsa", "kao", "rif", "wey"), [1, 0, 3, 2, None, 1]),
        ("kind", ("ASH", "FIR", "OAK", "YEW"), [2, 0, 3, 1, None, 2]),
    ],
)
def test_texts_that_label_the_samples_of_tars_are_the_classes_sorted_over_all_shards(label, classes, labels, named):
    listing = listed(named, label=label)
    assert listing.classes == classes
    keys = ("00", "01", "02", "10", "11", "12")
    assert labels_by_key(listing) == {key: of for key, of in zip(keys, labels, strict=True) if of is not None}
    faults = [s.fault for shard in listing.shards for s in read_shard(listing, shard) if s.fault]
    assert faults == ["label 7 is not in 0..3"]


def test_texts_of_many_shards_are_read_once_while_these_are_the_same(named, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(named / ".cache"))
    monkeypatch.setattr(digest, "_MANY", 2)
    read, texts = [], layout._texts

    def counted(path, *rest):
        read.append(path.name)
        return texts(path, *rest)

    monkeypatch.setattr(layout, "_texts", counted)
    first = listed(named)
    assert sorted(read) == ["0.tar", "0.tar", "1.tar"]  # a first look, and all
    assert listed(named) == first
    assert len(read) == 3
    write_tar(named / "1.tar", [("x.png", picture(1)), ("x.cls", b"elm")])
    assert listed(named).classes == ("ash", "elm", "oak", "yew")


def test_captions_are_no_classes_and_numbers_are_counted_by_no_one(named, monkeypatch):
    with pytest.raises(
        InputError, match=r"no field 'kinds' in .*member \.kinds; there are caption, .*--images.label kind"
    ):
        listed(named, label="kinds")
    monkeypatch.setattr(layout, "MOST_CLASSES", 3)
    with pytest.raises(InputError, match=r"'caption' holds 5 texts, as 'a photo of 7': captions are no classes"):
        listed(named, label="caption")
    for shard in range(2):
        tar(named / f"{shard}.tar", ["x", "y"], label=shard)
    with pytest.raises(InputError, match="how many classes"):
        listed(named)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("seed", range(10))
def test_each_table_is_read_by_its_own_names_in_whatever_order(seed, form, tmp_path):
    random = np.random.default_rng(seed)
    classes, expected = ["ash", "fir", "oak", "yew"], {}
    for shard in range(5):
        names = [str(name) for name in random.permutation(classes)]
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        labels = [int(label) for label in random.integers(-1, 4, 6)]
        table = pa.table({"image": [picture(shard)] * 6, "label": labels}).replace_schema_metadata(metadata)
        path = tmp_path / f"{shard}.{form}"
        if shard == seed % 2:
            path.write_bytes(b"")
        elif form == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table)
        if shard != seed % 2:
            expected |= {(f"{shard}", f"{row:06d}"): names[label] for row, label in enumerate(labels) if label >= 0}
    listing = listed(tmp_path)
    assert sorted(listing.classes) == classes
    read = [(shard.name, s) for shard in listing.shards for s in read_shard(listing, shard) if not s.fault]
    assert {(name, s.key): listing.classes[s.label] for name, s in read} == expected


def test_tar_that_a_mac_wrote_is_read_without_what_it_adds(tmp_path):
    files = [("./a.png", picture(1)), ("./a.cls", b"cat"), ("./b b.png", picture(2)), ("./b b.cls", b"dog")]
    members = [
        (other, content) for name, of in files for other, content in ((f"./._{name[2:]}", b"\0\5\x16\7"), (name, of))
    ]
    write_tar(tmp_path / "a.tar", [*members, ("__MACOSX/c.png", b"\0\5\x16\7")])
    listing = listed(tmp_path)
    assert labels_by_key(listing) == {"./a": 0, "./b b": 1}
    assert not [s for s in read_shard(listing, listing.shards[0]) if s.fault]


def test_numbers_that_are_of_no_class_and_an_empty_first_shard_make_no_class(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    told = [b"-1", b"cat", b"-20"]
    write_tar(
        tmp_path / "1.tar",
        [(f"{n}.{s}", c) for n, of in enumerate(told) for s, c in (("png", picture(1)), ("cls", of))],
    )
    listing = listed(tmp_path)
    assert listing.classes == ("cat",)
    assert labels_by_key(listing) == {"1": 0}
    assert [s.fault for s in read_shard(listing, listing.shards[1]) if s.fault] == ["no label"] * 2


def test_whole_number_with_a_point_in_json_is_a_label(tmp_path):
    metas = [
        '{"label": 3.0}',
        '{"label": 0}',
        '{"label": 0.5}',
        '{"label": NaN}',
        '{"label": 1e300}',
        '{"label": true}',
    ]
    members = [(f"{n}.{s}", c) for n, of in enumerate(metas) for s, c in (("png", picture(1)), ("json", of.encode()))]
    write_tar(tmp_path / "a.tar", members)
    assert labels_by_key(listed(tmp_path, num_classes=4)) == {"0": 3, "1": 0}


def test_pictures_without_labels_are_of_one_class_in_any_layout(tmp_path):
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", [("x.png", picture(1)), ("y.png", picture(2))])
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"image": [picture(1)]}), tmp_path / "tables" / "a.parquet")
    (tmp_path / "folders" / "cat").mkdir(parents=True)
    (tmp_path / "folders" / "cat" / "x.png").write_bytes(picture(1))
    for name, keys in (("tars", ["x", "y"]), ("tables", ["000000"]), ("folders", ["cat/x.png"])):
        listing = listed(tmp_path / name, label="none")
        assert listing.classes == ("image",)
        assert labels_by_key(listing) == dict.fromkeys(keys, 0)
    assert listed(tmp_path / "folders", label="none").digest != listed(tmp_path / "folders").digest
    with pytest.raises(InputError, match=r"--images\.label none"):
        listed(tmp_path / "tars")
