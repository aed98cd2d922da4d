"""Folders of Hugging Face's `datasets`: read as its library writes them, and no damage goes unseen."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.errors import InputError
from tests.tokenize_jobs.test_parquet import IMAGES
from tests.tokenize_jobs.test_splits import labels_by_key
from tests.tokenize_jobs.test_tar import random_damage
from tokenize_jobs.sources.crop import decode
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.sources.samples import read_shard

ROWS, BATCH = 40, 8
NAMES = ["ant", "bee", "cat"]


def streamed(labels, names=None, start=0):
    """Return a stream as `datasets` writes it, features in the schema's metadata, and where each batch begins or ends."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else None
    images = [{"bytes": IMAGES[(start + place) % len(IMAGES)], "path": None} for place in range(len(labels))]
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    buffer, ends = io.BytesIO(), []
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=BATCH):
            ends.append(buffer.tell())
            stream.write_batch(batch)
        ends.append(buffer.tell())
    return buffer.getvalue(), ends


def saved(folder, labels, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    half = len(labels) // 2
    (folder / "data-00000-of-00002.arrow").write_bytes(streamed(labels[:half], names)[0])
    (folder / "data-00001-of-00002.arrow").write_bytes(streamed(labels[half:], names, start=half)[0])
    (folder / "cache-0123456789abcdef.arrow").write_bytes(streamed([0] * ROWS)[0])
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")


def test_saved_dataset_is_read_with_the_names_of_its_classes_and_without_the_librarys_notes(tmp_path):
    labels = [row % 3 for row in range(ROWS)]
    saved(tmp_path, labels, NAMES)
    listing = scan(str(tmp_path))
    assert (listing.format, listing.classes, len(listing.shards)) == ("arrow", tuple(NAMES), 2)
    found = [sample for shard in listing.shards for sample in read_shard(listing, shard)]
    assert [(sample.content, sample.label, sample.fault) for sample in found] == [
        (image, label, "") for image, label in zip(IMAGES, labels, strict=True)
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["oak", "ash", "oak", "yew"], ("ash", "oak", "yew"), [1, 0, 1, 2]),
        ([2, 0, 1, 0], ("0", "1", "2"), [2, 0, 1, 0]),
    ],
)
def test_classes_are_the_texts_or_the_numbers_in_the_column(labels, classes, numbers, tmp_path):
    saved(tmp_path, labels)
    listing = scan(str(tmp_path))
    assert listing.classes == classes
    assert [s.label for shard in listing.shards for s in read_shard(listing, shard)] == numbers


def test_dictionary_of_splits_is_split(tmp_path):
    for split in ("train", "test"):
        saved(tmp_path / split, [0, 1, 2, 0], NAMES)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    images = scan_images(ImageFiles(path=str(tmp_path)))
    assert [len(side.shards) for side in (images.train, images.heldout)] == [2, 2]
    assert images.train.classes == images.heldout.classes == tuple(NAMES)
    assert labels_by_key(images.train) == {"000000": 2, "000001": 0}


def test_column_that_is_not_there_is_refused_and_none_needs_none(tmp_path):
    saved(tmp_path, [0, 1], NAMES)
    with pytest.raises(
        InputError, match=r"no column 'labels'; there are image, label\. .*--images\.label label, or none"
    ):
        scan_images(ImageFiles(path=str(tmp_path), label="labels"))
    assert scan_images(ImageFiles(path=str(tmp_path), label="none")).all.classes == ("image",)


@pytest.mark.parametrize("rounds", [150, pytest.param(3000, marks=pytest.mark.chaos)])
def test_stream_damaged_anywhere_keeps_what_lies_before_and_records_the_rest(rounds, tmp_path):
    whole, ends = streamed(list(range(ROWS)))
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        damage = random_damage(whole, random)
        (tmp_path / "a.arrow").write_bytes(damage.apply(whole, random))
        try:
            listing = scan(str(tmp_path), ROWS)
        except InputError:
            assert damage.at < ends[0]  # a column was renamed, or is of another type
            continue
        samples = list(read_shard(listing, listing.shards[0]))
        good = {sample.key: sample for sample in samples if not sample.fault}
        assert len(good) == ROWS or any(sample.fault for sample in samples), damage
        for batch, end in enumerate(ends[1:]):
            if damage.at >= end:
                for row in range(batch * BATCH, (batch + 1) * BATCH):
                    assert good[f"{row:06d}"].content == IMAGES[row], damage
                    assert good[f"{row:06d}"].label == row, damage


@pytest.mark.parametrize("batches", range(1, ROWS // BATCH + 1))
def test_stream_cut_between_two_batches_is_recorded(batches, tmp_path):
    whole, ends = streamed(list(range(ROWS)))
    (tmp_path / "a.arrow").write_bytes(whole[: ends[batches]])
    listing = scan(str(tmp_path), ROWS)
    samples = list(read_shard(listing, listing.shards[0]))
    assert [sample.fault for sample in samples if sample.fault] == [
        "the table cannot be read from here on: the stream has no end, or ends before the file does"
    ]
    assert len(samples) == batches * BATCH + 1


def test_what_the_library_itself_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2, 0, 1, 2]}, features=features)
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    listing = scan(str(tmp_path / "saved"))
    assert listing.classes == tuple(NAMES)
    found = [sample for shard in listing.shards for sample in read_shard(listing, shard)]
    assert [sample.label for sample in found] == [0, 1, 2, 0, 1, 2]
    assert [np.asarray(decode(sample.content))[0, 0, 0] for sample in found] == list(range(6))
