"""Labels from a named field, a named column or a table: numbers, or names of classes."""

import contextlib
import csv
import json
import unicodedata

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
from tokenize_jobs.sources.labels import Labels
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


@pytest.mark.parametrize(("form", "between"), [("csv", ","), ("tsv", "\t")])
def test_table_of_labels_stands_in_place_of_the_files_own(form, between, tmp_path):
    (tmp_path / "flat").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "flat" / name).write_bytes(picture(1))
    table = tmp_path / f"labels.{form}"
    table.write_text(
        "".join(f"{key}{between}{label}\n" for key, label in [("image", "breed"), ("a.png", "pug"), ("b", "lab")])
    )
    listing = listed(tmp_path / "flat", labels=str(table))
    assert listing.classes == ("lab", "pug")
    assert labels_by_key(listing) == {"a.png": 1, "b.png": 0}
    assert [s.fault for s in read_shard(listing, listing.shards[0]) if s.fault] == ["no label"]
    table.write_text(table.read_text().replace("lab", "poodle"))
    from tokenize_jobs.sources import labels

    labels._read.cache_clear()
    changed = listed(tmp_path / "flat", labels=str(table))
    assert changed.digest != listing.digest
    assert changed.classes == ("poodle", "pug")


def test_table_of_numbers_labels_the_samples_of_tars_and_folders(tmp_path):
    tar(tmp_path / "a.tar", ["x", "y"], label=7)
    (tmp_path / "labels.csv").write_text("x,3\ny,0\n")
    listing = listed(tmp_path, labels=str(tmp_path / "labels.csv"))
    assert listing.classes == ("0", "1", "2", "3")
    assert labels_by_key(listing) == {"x": 3, "y": 0}
    (tmp_path / "folders" / "any").mkdir(parents=True)
    (tmp_path / "folders" / "any" / "y.png").write_bytes(picture(1))
    assert labels_by_key(listed(tmp_path / "folders", labels=str(tmp_path / "labels.csv"))) == {"any/y.png": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1\nb\n", "line 2: a key and a label are needed, not 'b'"),
        ("a,1\nb, \n", "line 2: a key and a label are needed, not 'b'"),
        (",1\n", "line 1: a key and a label are needed, not ''"),
        ('a,1\nb,"2\nc,3\n', "line 3: cannot be read"),
        ("filename,width,height\na,3,4\n", "which of filename, width, height is the label"),
        ("a,3,4\n", "which of a, 3, 4 is the label"),
        ("a,1\nb,1\na,2\n", "line 3: 'a' has two labels, '1' and '2'"),
        ("", "holds no labels"),
        (None, "cannot be read"),
    ],
)
def test_table_of_labels_that_is_none_is_refused(text, message, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        listed(tmp_path, labels=str(tmp_path / "labels.csv"))


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


@pytest.mark.parametrize("head", ["file_name,label", "\ufeffid,breed", "picture,class", "key,what", ""])
def test_first_line_of_a_table_is_no_class_whatever_program_wrote_it(head, tmp_path):
    names = [str(number) for number in range(12)]
    (tmp_path / "flat").mkdir()
    for name in names:
        (tmp_path / "flat" / f"{name}.png").write_bytes(picture(1))
    lines = [head] * bool(head) + [f"{name}.png,{name}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    listing = listed(tmp_path / "flat", labels=str(tmp_path / "labels.csv"))
    assert listing.classes == tuple(names)
    assert labels_by_key(listing) == {f"{name}.png": int(name) for name in names}


@pytest.mark.parametrize("seed", range(40))
def test_table_of_labels_that_any_program_wrote_gives_each_picture_its_own(seed, tmp_path):
    random = np.random.default_rng(seed)
    words = ["cat", "big, cat", 'a "cat"', "e\u0301te\u0301", "a\nb", "x\u2028y", "v1.5", "50%", "a b", "z'", "7"]
    pictures = {f"{random.choice(words)}/{place} {random.choice(words)}": random.choice(words) for place in range(12)}
    for name in pictures:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.PNG").write_bytes(picture(1))
    keys = [lambda name: f"{name}.PNG", str, lambda name: f"./{name}.PNG", lambda name: name.split("/")[1]]
    names, columns = [["File Name", "label"], ["image_id", "Class"], ["picture", "target"]][random.integers(3)], [0, 1]
    if random.random() < 0.5:
        columns = [*random.permutation(2), *[2] * random.integers(3)]
    rows = [names]
    rows += [[unicodedata.normalize("NFC", keys[seed % 4](name)), str(label)] for name, label in pictures.items()]
    with (tmp_path / "labels.csv").open("w", encoding=str(random.choice(["utf-8", "utf-8-sig"])), newline="") as file:
        writer = csv.writer(
            file, delimiter=str(random.choice([",", "\t"])), lineterminator=str(random.choice(["\n", "\r\n"])),
            quoting=int(random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        )  # fmt: skip
        writer.writerows([[*row, "more"][column] for column in columns] for row in rows)
    listing = listed(tmp_path / "in", labels=str(tmp_path / "labels.csv"))
    found = {key.removesuffix(".PNG"): listing.classes[label] for key, label in labels_by_key(listing).items()}
    assert found == pictures


def test_table_of_labels_serves_parquet_without_a_label_column(tmp_path):
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"image": [picture(1), picture(2)]}), tmp_path / "tables" / "a.parquet")
    (tmp_path / "labels.csv").write_text("000000,dog\n000001,cat\n")
    listing = listed(tmp_path / "tables", labels=str(tmp_path / "labels.csv"))
    assert labels_by_key(listing) == {"000000": 1, "000001": 0}


@pytest.mark.parametrize("seed", range(40))
def test_table_of_labels_damaged_anywhere_is_refused_or_read_and_never_a_traceback(seed, tmp_path):
    random = np.random.default_rng(seed)
    content = bytearray("".join(f"{n}.png,{n % 7}\n" for n in range(50)).encode())
    for _ in range(random.integers(1, 6)):
        place, kind = random.integers(len(content)), random.integers(3)
        inserted = [bytes([random.integers(256)]), b"9" * 5000, b'"' + b"x" * 200_000][random.integers(3)]
        content[place : place + kind] = inserted
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with contextlib.suppress(InputError):
        assert 0 < len(Labels(table=str(table)).classes()) <= 10**6
