"""A latent store in the forms that others read, read back by their own libraries; and a published cache taken in."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from torchvision.datasets import DatasetFolder

from infra.errors import InputError
from infra.storage import location, read_json
from pipeline.commands.latents import main
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.store.cache_import import import_cache
from tokenize_jobs.store.export import ABOUT, class_folders, export
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.store.shards import columns_of, commit_shard, publish, to_table
from tokenize_jobs.tokens import Codes, GaussianLatents, SubPixels

KIND, CODES = GaussianLatents(4, 3, 3), Codes(70_000, 3, 3)
CLASSES = ["ant", "bee.x", "cat"]
KEYS = ["one", "sub/two.a.b", "bee/three.jpg", "four", "käse"]
PIXELS = TokenizerFile("pixels", hash="w")


def written(root, kind, values):
    """Write a store of two shards with the same keys in both."""
    for shard, rows in (("b", values[0]), ("a", values[1])):
        labels = [(place + (shard == "a")) % 3 for place in range(len(KEYS))]
        commit_shard(root, shard, to_table(kind, KEYS, labels, rows[0], rows[1]), kind, [])
    source = {"format": "webdataset", "shards": 2, "digest": "d" * 64, "bytes": 1}
    publish(root, ["a", "b"], kind, {
        "tokenizer": {"kind": "pixels", "weights": "w"}, "image_size": 3, "classes": CLASSES, "source": source,
    })  # fmt: skip
    return root


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((2, 2, len(KEYS), *KIND.shape)).astype(np.float16)


@pytest.fixture
def store(tmp_path, values):
    return written(location(tmp_path / "store"), KIND, values)


def test_shards_are_read_by_the_webdataset_library_as_they_are_stored(store, values, tmp_path):
    assert export(store, "webdataset", location(tmp_path / "out")) == 2 * len(KEYS)
    pattern = str(tmp_path / "out" / "{a,b}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).decode())
    stored = np.concatenate([values[1], values[0]], axis=1)
    assert len(samples) == 2 * len(KEYS)
    for place, sample in enumerate(samples):
        assert np.array_equal(sample["moments.npy"], stored[0, place])
        assert np.array_equal(sample["moments_flip.npy"], stored[1, place])
        assert sample["json"] == {"key": KEYS[place % len(KEYS)], "label": sample["cls"]}
    opened = LatentStore(store)
    assert [sample["cls"] for sample in samples] == opened.labels.tolist()
    assert read_json(tmp_path / "out" / ABOUT)["latent_scale"] == opened.latent_scale


def test_codes_are_exported_too(tmp_path):
    values = np.random.default_rng(0).integers(0, 70_000, (2, 2, len(KEYS), *CODES.shape)).astype(CODES.dtype)
    store = written(location(tmp_path / "codes"), CODES, values)
    export(store, "webdataset", location(tmp_path / "out"))
    sample = next(iter(webdataset.WebDataset(str(tmp_path / "out" / "b.tar"), shardshuffle=False).decode()))
    assert np.array_equal(sample["codes.npy"], values[0, 0, 0])


def test_exported_bytes_are_the_same_each_time(store, tmp_path):
    contents = []
    for name in ("one", "two"):
        for form in ("webdataset", "npz"):
            export(store, form, location(tmp_path / name / form))
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2 + 1 + 2 * len(KEYS) + 1


def published(path):
    """Return what MAR's dataset of cached latents returns of a file: one of the two, float32."""
    saved = np.load(path)
    return saved["moments"], saved["moments_flip"]


def test_cache_is_read_as_the_published_code_reads_it_and_taken_in_again(store, values, tmp_path):
    export(store, "npz", location(tmp_path / "cache"))
    folder = DatasetFolder(str(tmp_path / "cache"), published, extensions=(".npz",))
    assert folder.classes == CLASSES
    assert all(array.dtype == np.float32 and array.shape == KIND.shape for pair, _ in folder for array in pair)
    found = sorted((label, pair[0].tobytes(), pair[1].tobytes()) for pair, label in folder)
    opened = LatentStore(store)
    places = np.arange(len(opened))
    stored = [opened.stored(places, np.full(len(places), flip)).astype(np.float32) for flip in (0, 1)]
    expected = sorted(zip(opened.labels.tolist(), *[[x.tobytes() for x in rows] for rows in stored], strict=True))
    assert found == expected
    manifest = import_cache(location(tmp_path / "cache"), PIXELS, 3, KIND, location(tmp_path / "again"))
    again = LatentStore(str(tmp_path / "again"))
    assert manifest["classes"] == CLASSES
    assert again.latent_scale == pytest.approx(opened.latent_scale, rel=1e-6)
    taken = [again.stored(places, np.full(len(places), flip)).astype(np.float32) for flip in (0, 1)]
    assert sorted(zip(again.labels.tolist(), *[[x.tobytes() for x in rows] for rows in taken], strict=True)) == expected


def test_keys_that_would_be_one_file_are_two(tmp_path, values):
    root, keys = location(tmp_path / "alike"), ["a/b", "a--b"]
    commit_shard(root, "s", to_table(KIND, keys, [0, 0], values[0, 0, :2], values[0, 1, :2]), KIND, [])
    publish(root, ["s"], KIND, {"classes": ["ant"]})
    assert export(root, "npz", location(tmp_path / "cache")) == 2
    found = [np.load(path)["moments"] for path in sorted((tmp_path / "cache" / "ant").iterdir())]
    np.testing.assert_array_equal(found, values[0, 0, :2].astype(np.float32))


def test_folders_sort_as_the_labels_do_whatever_the_names():
    for names in (CLASSES, ["b", "a"], [str(n) for n in range(12)], ["a/b", "a-b"], ["", "x"], ["x", "x"]):
        folders = class_folders(names)
        assert folders == sorted(set(folders))
        assert len(folders) == len(names)
        assert not any("/" in folder or not folder for folder in folders)


def cached(folder, count, shape=KIND.shape):
    folder.mkdir(parents=True, exist_ok=True)
    good = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    for number in range(count):
        np.savez(folder / f"{number:04d}.npz", moments=good[0] + number, moments_flip=good[1])
    return good


def test_interrupted_import_reads_no_committed_file_again(tmp_path):
    cached(tmp_path / "cache" / "ant", 1100)
    cache, root = location(tmp_path / "cache"), location(tmp_path / "made")
    manifest = import_cache(cache, PIXELS, 3, KIND, root)
    first = {path.name: path.read_bytes() for path in (tmp_path / "made" / "shards").iterdir()}
    second = sorted((tmp_path / "made" / "commits").iterdir())[1]
    for path in (tmp_path / "made" / "manifest.json", second, tmp_path / "made" / "shards" / f"{second.stem}.parquet"):
        path.unlink()
    for path in sorted((tmp_path / "cache" / "ant").iterdir())[0::2]:  # a stride of two: the first shard's
        path.write_bytes(bytes(path.stat().st_size))
    assert import_cache(cache, PIXELS, 3, KIND, root) == manifest
    assert {path.name: path.read_bytes() for path in (tmp_path / "made" / "shards").iterdir()} == first


def test_bad_files_are_set_aside_with_their_reason_and_too_many_are_refused(tmp_path):
    folder = tmp_path / "cache" / "ant"
    good = cached(folder, 400)
    np.savez(folder / "0007.npz", moments=good[0] * np.inf, moments_flip=good[1])
    np.savez(folder / "0008.npz", moments=good[0], other=good[1])
    (folder / "0009.npz").write_bytes(b"PK")
    root = location(tmp_path / "made")
    assert import_cache(location(tmp_path / "cache"), PIXELS, 3, KIND, root)["quarantined"] == 3
    reasons = pq.read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()
    assert [row["key"] for row in reasons] == ["ant/0007", "ant/0008", "ant/0009"]
    assert "no finite float16" in reasons[0]["reason"]
    cached(folder, 10, (2, 3, 3))
    with pytest.raises(InputError, match=r"10 of 400 files cannot be used; first: ant/0000: .* its shape is"):
        import_cache(location(tmp_path / "cache"), PIXELS, 3, KIND, location(tmp_path / "bad"))
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"holds no \.npz"):
        import_cache(location(tmp_path / "cache"), PIXELS, 3, KIND, location(tmp_path / "none"))


@pytest.mark.parametrize(
    ("kind", "bad"), [(Codes(300, 2, 2), (-1, 3.7, 300, np.nan)), (SubPixels(2, 2), (-1, 0.5, 256))], ids=str
)
def test_numbers_that_are_no_codes_are_set_aside_with_the_range(kind, bad, tmp_path):
    folder, random = tmp_path / "cache" / "ant", np.random.default_rng(0)
    folder.mkdir(parents=True)
    columns = columns_of(kind)
    for number in range(400):
        values = random.integers(256, size=(2, *kind.shape)).astype(float)
        if number < len(bad):
            values[1].flat[1] = bad[number]
        np.savez(folder / f"{number:04d}.npz", **dict(zip(columns, values, strict=True)))
    root = location(tmp_path / "made")
    assert import_cache(location(tmp_path / "cache"), PIXELS, 3, kind, root)["quarantined"] == len(bad)
    reasons = pq.read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()
    assert {row["reason"].split(": ")[1] for row in reasons} == {
        f"holds what is no whole number from 0 to {kind.choices - 1}"
    }


def test_command_line_exports_and_imports(store, tmp_path, capsys):
    main([str(store), "--export", "npz", str(tmp_path / "cache")])
    assert f"exported: {2 * len(KEYS)} images" in capsys.readouterr().out
    pixels = tmp_path / "pixels" / "x"
    pixels.mkdir(parents=True)
    for number in range(3):
        image = np.random.default_rng(number).standard_normal((3, 8, 8)).astype(np.float32)
        np.savez(pixels / f"{number}.npz", moments=image, moments_flip=image[:, :, ::-1])
    words = [str(tmp_path / "new"), "--from", "npz", str(pixels.parent), "--tokenizer", "pixels", "--image-size", "8"]
    main(words)
    assert "3 (0 quarantined)" in capsys.readouterr().out
    with pytest.raises(InputError, match="a latent store is there already"):
        main(words)
    with pytest.raises(InputError, match="no such folder"):
        main([str(tmp_path / "other"), "--from", "npz", str(tmp_path / "nowhere"), "--tokenizer", "pixels"])
