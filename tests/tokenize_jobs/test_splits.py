"""Splits by the names of folders and files, what is held out, and which class has which label."""

import io
import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import InputError
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.sources import samples
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.sources.samples import cropped_images, evenly, read_shard
from tokenize_jobs.sources.splits import find_splits


def picture(value):
    return encoded(Image.fromarray(np.full((8, 8, 3), value, np.uint8)))


def class_folders(root, classes, images=2):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(images):
            (root / name / f"{index}.png").write_bytes(picture(label))


def tar(path, names, label=0):
    write_tar(path, [(f"{n}.{s}", c) for n in names for s, c in (("png", picture(9)), ("cls", b"%d" % label))])


def table(path, labels, names):
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else None
    images = [{"bytes": picture(max(label, 0)), "path": None} for label in labels]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata), path)


def labels_by_key(listing):
    return {s.key: s.label for shard in listing.shards for s in read_shard(listing, shard) if not s.fault}


@pytest.mark.parametrize("held", ["val", "validation", "valid", "test", "Val"])
def test_class_folders_below_train_and_val_are_two_splits_of_the_same_classes(held, tmp_path):
    class_folders(tmp_path / "train", ["cat", "dog", "emu"])
    class_folders(tmp_path / held, ["cat", "emu"])
    images = scan_images(ImageFiles(path=str(tmp_path)))
    assert images.train.classes == images.heldout.classes == ("cat", "dog", "emu")
    assert set(labels_by_key(images.train).values()) == {0, 1, 2}
    assert labels_by_key(images.heldout) == {"cat/0.png": 0, "cat/1.png": 0, "emu/0.png": 2, "emu/1.png": 2}
    assert images.all == images.train
    assert "3 classes (cat, dog, emu): train 1 shard; held out " in images.told


def test_splits_below_one_folder_are_found_and_the_latents_are_those_of_the_split_named_itself(tmp_path):
    class_folders(tmp_path / "ILSVRC" / "train", ["cat", "dog"])
    class_folders(tmp_path / "ILSVRC" / "val", ["cat", "dog"])
    assert scan(str(tmp_path)) == scan(str(tmp_path / "ILSVRC" / "train"))


def test_class_folders_beside_a_split_without_any_are_trained_on_and_a_share_is_held_out(tmp_path):
    class_folders(tmp_path / "train", ["cat", "dog"])
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "unlabelled.png").write_bytes(picture(0))
    images = scan_images(ImageFiles(path=str(tmp_path)))
    assert images.train.classes == ("cat", "dog")
    assert images.train.heldout.share == 0.02


def test_tables_of_hugging_face_are_split_and_name_their_classes(tmp_path):
    for number in range(2):
        table(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", [number, 2], ["cat", "dog", "emu"])
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", [1], ["cat", "dog", "emu"])
    table(tmp_path / "data" / "test-00000-of-00001.parquet", [-1], ["cat", "dog", "emu"])
    images = scan_images(ImageFiles(path=str(tmp_path)))
    assert images.train.classes == ("cat", "dog", "emu")
    assert [shard.name for shard in images.train.shards] == [f"data--train-0000{n}-of-00002" for n in range(2)]
    assert labels_by_key(images.heldout) == {"000000": 1}
    assert images.told.endswith("train 2 shards; held out validation 1 shard; unused test")


def test_tars_side_by_side_are_split_and_another_split_can_be_chosen(tmp_path):
    for name in ("cifar10-train-000", "cifar10-train-001", "cifar10-test-000"):
        tar(tmp_path / f"{name}.tar", [name])
    images = scan_images(ImageFiles(path=str(tmp_path), num_classes=10))
    assert [len(images.train.shards), len(images.heldout.shards)] == [2, 1]
    other = scan_images(ImageFiles(path=str(tmp_path), num_classes=10, split="test", heldout_split="train"))
    assert [len(other.train.shards), len(other.heldout.shards)] == [1, 2]
    with pytest.raises(InputError, match="no split 'validation'; there are test, train"):
        scan_images(ImageFiles(path=str(tmp_path), num_classes=10, heldout_split="validation"))


def test_files_of_no_split_beside_some_are_told_and_not_trained_on():
    splits = find_splits(["extra.tar", "test-0.tar", "train-0.tar"], by_name=True)
    assert splits["other"].files == ("extra.tar",)
    assert splits["train"].files == ("train-0.tar",)


@pytest.mark.parametrize(
    "files",
    [
        ["train/a.png", "cat/b.png"],  # classes of vehicles and pets
        ["n01/train-1.png", "n01/test-2.png"],  # pictures, whose own names tell nothing
        ["strain-0.tar", "latest-0.tar"],
        ["train-0.tar", "train-1.tar"],
        [],
    ],
)
def test_names_that_are_no_splits_are_left_alone(files):
    assert find_splits(files, by_name=bool(files) and files[0].endswith(".tar")) == {}


def test_class_that_only_the_held_out_images_have_is_refused(tmp_path):
    class_folders(tmp_path / "train", ["cat", "dog"])
    class_folders(tmp_path / "val", ["cat", "emu"])
    with pytest.raises(InputError, match=r"its classes are not those of .*: there is no 'emu'"):
        scan_images(ImageFiles(path=str(tmp_path)))


def test_tables_that_number_the_same_classes_differently_are_refused(tmp_path):
    table(tmp_path / "train-0.parquet", [0], ["cat", "dog"])
    table(tmp_path / "test-0.parquet", [0], ["dog", "cat"])
    with pytest.raises(InputError, match="their order differs"):
        scan_images(ImageFiles(path=str(tmp_path)))


def test_held_out_path_can_be_a_root_with_splits_and_must_not_be_the_training_images(tmp_path):
    class_folders(tmp_path / "a", ["cat", "dog"])
    for split in ("train", "val"):
        class_folders(tmp_path / "b" / split, ["cat", "dog"])
    images = scan_images(ImageFiles(path=str(tmp_path / "a"), heldout_path=str(tmp_path / "b")))
    assert images.heldout.root == str(tmp_path / "b" / "val")
    with pytest.raises(InputError, match="the held-out images are those to train on"):
        scan_images(ImageFiles(path=str(tmp_path / "a"), heldout_path=str(tmp_path / "a")))


def test_share_is_held_out_of_every_shard_by_name_and_the_two_sides_are_the_whole(tmp_path):
    for shard in range(4):
        tar(tmp_path / f"{shard}.tar", [f"{shard}-{n}" for n in range(100)])
    images = scan_images(ImageFiles(path=str(tmp_path), num_classes=1, heldout_share=0.1))
    whole, train, heldout = (labels_by_key(side).keys() for side in (images.all, images.train, images.heldout))
    assert len(whole) == 400
    assert train | heldout == whole
    assert not train & heldout
    assert 20 <= len(heldout) <= 60  # 40 expected, 6 standard deviation
    assert images.all == scan(str(tmp_path), 1)
    none = scan_images(ImageFiles(path=str(tmp_path), num_classes=1, heldout_share=0))
    assert none.heldout is None
    with pytest.raises(InputError, match="heldout-share 1"):
        scan_images(ImageFiles(path=str(tmp_path), num_classes=1, heldout_share=1))


def test_rule_holds_its_share_of_names_and_nothing_else_decides():
    keys = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(50_000)]
    held = np.array([Heldout(0.02).holds(f"folder-{i // 1024:06d}", key) for i, key in enumerate(keys)])
    assert abs(held.mean() - 0.02) < 4 * np.sqrt(0.02 * 0.98 / len(keys))
    more = np.array([Heldout(0.05).holds(f"folder-{i // 1024:06d}", key) for i, key in enumerate(keys)])
    assert not (held & ~more).any()
    assert not any(Heldout(0).holds("a", key) for key in keys[:100])


def numbered(root, counts):
    """Tars of so many images each, every image of its own colour."""
    colour = 0
    for shard, count in enumerate(counts):
        members = []
        for index in range(count):
            pixels = np.broadcast_to(np.array([colour // 256, colour % 256, shard], np.uint8), (8, 8, 3))
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            members += [(f"{index}.png", buffer.getvalue()), (f"{index}.cls", b"0")]
            colour += 1
        write_tar(root / f"{shard}.tar", members)
    return scan(str(root), 1)


@pytest.mark.parametrize("seed", range(6))
def test_images_are_taken_evenly_from_all_shards_until_there_are_enough(seed, tmp_path):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 12, int(random.integers(1, 9))).tolist()
    listing, total = numbered(tmp_path, counts), sum(counts)
    in_order = np.concatenate([np.zeros((0, 8, 8, 3), np.uint8), *(
        batch for shard in listing.shards for batch in cropped_images(listing, shard, 8)
    )])  # fmt: skip
    for most in {1, max(total // 2, 1), max(total, 1), total + 5}:
        taken = evenly(listing, 8, most)
        assert len(taken) == min(most, total)
        each = np.bincount(taken[:, 0, 0, 2], minlength=len(counts))
        short = each < np.array(counts)
        assert not short.any() or each[short].max() - each[short].min() <= 2
        assert not short.any() or each.max() <= each[short].min() + 2
        if most >= total:
            assert np.array_equal(taken, in_order)


def test_shards_are_read_at_the_same_time_and_their_images_stay_in_order(tmp_path, monkeypatch):
    listing, arrived, read = numbered(tmp_path, [3, 3]), threading.Barrier(2, timeout=20), samples.cropped_images
    expected = evenly(listing, 8, 4)

    def waits_for_the_other(*asked):
        arrived.wait()  # one after the other would wait for ever
        return read(*asked)

    monkeypatch.setattr(samples, "cropped_images", waits_for_the_other)
    assert np.array_equal(evenly(listing, 8, 4), expected)
    assert expected[:, 0, 0, 2].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("held", ["1.tar", "{0,1}.tar", ""])
def test_held_out_images_that_are_among_those_to_train_on_are_refused(held, tmp_path):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", [f"{number}"])
    with pytest.raises(InputError, match="the held-out images are those to train on"):
        scan_images(ImageFiles(path=f"{tmp_path}/*.tar", heldout_path=f"{tmp_path}/{held}", num_classes=1))


def test_two_shards_of_one_name_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    tar(tmp_path / "a" / "b.tar", ["x"])
    tar(tmp_path / "a--b.tar", ["y"])
    with pytest.raises(InputError, match="both hold a shard 'a--b'"):
        scan(str(tmp_path), 1)
