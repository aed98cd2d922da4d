"""What `--reference PATH` names: images, the images of a latent store, and ADM's .npz in each of its forms."""

import shutil

import numpy as np
import pytest
from PIL import Image

from evaluate.config import Reference
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.storage import write_json
from pipeline.references import named_reference
from pipeline.steps import NO_IMAGES, Source
from tokenize_jobs.sources.listing import ImageFiles, scan_images
from tokenize_jobs.store.shards import MANIFEST

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
STATISTICS = {"mu": np.zeros(2), "sigma": np.eye(2)}


def folder(root):
    for number, image in enumerate(IMAGES):
        (root / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"{number % 2}" / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("arrays", "has_images", "has_statistics"),
    [({"arr_0": IMAGES}, True, False), (STATISTICS, False, True), ({"arr_0": IMAGES, **STATISTICS}, True, True)],
)
def test_npz_is_images_statistics_or_both(arrays, has_images, has_statistics, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    config, source = named_reference(Reference(path=str(path)))
    assert (source is not NO_IMAGES, config.statistics) == (has_images, str(path) if has_statistics else "")
    other, _ = named_reference(Reference(path=str(path), statistics="/other.npz"))
    assert other.statistics == "/other.npz"


def test_other_npz_is_refused_with_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", moments=np.zeros(3))
    with pytest.raises(InputError, match="there are moments"):
        named_reference(Reference(path=str(tmp_path / "a.npz")))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"b\.npz: not a \.npz"):
        named_reference(Reference(path=str(tmp_path / "b.npz")))


def store(root, images, is_told=True):
    """Write what a latent store's manifest says of its source."""
    listing = scan_images(images).all
    source = {"format": listing.format, "digest": listing.digest}
    told = {"images": canonical(listing.given, identity=False)} if is_told else {}
    root.mkdir()
    write_json(root / MANIFEST, {"source": {**source, **told}})
    return str(root)


def test_store_stands_for_all_images_that_it_was_made_of(tmp_path, monkeypatch):
    folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    path = store(tmp_path / "store", ImageFiles(path="images"))
    monkeypatch.chdir("/")
    whole = Source.of(scan_images(ImageFiles(path=str(tmp_path / "images"), heldout_share=0)))
    _, source = named_reference(Reference(path=path))
    assert (source.inputs, source.images().train.side) == (whole.inputs, "all")


def test_store_whose_images_are_gone_others_or_not_told_is_refused_by_name(tmp_path):
    images = ImageFiles(path=str(folder(tmp_path / "images")))
    with pytest.raises(InputError, match="its manifest does not say where its images are"):
        named_reference(Reference(path=store(tmp_path / "untold", images, is_told=False)))
    path = store(tmp_path / "store", images)
    (tmp_path / "images" / "0" / "0.png").unlink()
    with pytest.raises(InputError, match="are others than it was made of"):
        named_reference(Reference(path=path))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match="are not there"):
        named_reference(Reference(path=path))
