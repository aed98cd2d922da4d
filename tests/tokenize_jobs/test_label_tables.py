"""Tables of labels: CSV and TSV of key and label, as any program writes them, beside pictures of any layout."""

import contextlib
import csv
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from tests.tokenize_jobs.test_splits import labels_by_key, picture, tar
from tokenize_jobs.sources.labels import Labels
from tokenize_jobs.sources.listing import ImageFiles, scan_images
from tokenize_jobs.sources.samples import read_shard


def listed(path, **options):
    return scan_images(ImageFiles(path=str(path), heldout_share=0, **options)).all


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
