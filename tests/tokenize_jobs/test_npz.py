"""Arrays of images in a .npz: read by rows, refused where they are none, and no damage goes unseen."""

import io

import numpy as np
import pytest

from infra.errors import InputError
from tests.tokenize_jobs.test_tar import random_damage
from tokenize_jobs.sources import npz
from tokenize_jobs.sources.crop import decode
from tokenize_jobs.sources.listing import scan, scan_samples
from tokenize_jobs.sources.samples import read_shard

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 9, 3), dtype=np.uint8)
LABELS = np.arange(10) % 3


def written(save, *arrays):
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


def read(path, classes=0):
    listing = scan(str(path), classes)
    return listing, [sample for shard in listing.shards for sample in read_shard(listing, shard)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_are_those_of_the_arrays_in_runs_of_rows(save, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_ROWS", 4)
    (tmp_path / "a.npz").write_bytes(written(save, PIXELS, LABELS))
    listing, samples = read(tmp_path / "a.npz")
    assert (listing.format, listing.classes, len(listing.shards)) == ("npz", ("0", "1", "2"), 3)
    np.testing.assert_array_equal([np.asarray(decode(sample.content)) for sample in samples], PIXELS)
    assert [sample.label for sample in samples] == LABELS.tolist()
    assert len({sample.key for sample in samples}) == len(PIXELS)


def test_images_without_labels_have_no_classes(tmp_path):
    (tmp_path / "a.npz").write_bytes(written(np.savez, PIXELS))
    assert scan_samples(str(tmp_path / "a.npz"), ()).classes == ()
    with pytest.raises(InputError, match="how many classes"):
        scan(str(tmp_path))


class Harmful:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((3, 8, 8, 3))], "float64"),
        ([np.zeros((0, 8, 8, 3), np.uint8)], r"\(0, 8, 8, 3\)"),
        ([np.zeros((3, 3, 8, 8), np.uint8)], r"\(3, 3, 8, 8\)"),
        ([np.array([Harmful()] * 3)], "object"),
        ([PIXELS, np.array([Harmful()] * 10)], "Object arrays cannot be loaded"),
        ([PIXELS, LABELS[:9]], "10 whole numbers"),
        ([], "no array arr_0"),
    ],
)
def test_other_arrays_are_refused_and_pickles_are_not_run(arrays, message, tmp_path):
    (tmp_path / "a.npz").write_bytes(written(np.savez, *arrays))
    with pytest.raises(InputError, match=message):
        scan_samples(str(tmp_path / "a.npz"), ())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("rounds", [100, pytest.param(3000, marks=pytest.mark.chaos)])
def test_damage_anywhere_is_told_or_harmless(rounds, save, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_ROWS", 4)
    whole, path = written(save, PIXELS, LABELS), tmp_path / "a.npz"
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        damage = random_damage(whole, random)
        path.write_bytes(damage.apply(whole, random))
        try:
            _, samples = read(path, 3)
        except InputError:
            continue
        if not any(sample.fault for sample in samples):
            np.testing.assert_array_equal([np.asarray(decode(of.content)) for of in samples], PIXELS, str(damage))
            assert [sample.label for sample in samples] == LABELS.tolist(), damage
