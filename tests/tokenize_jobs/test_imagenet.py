"""ImageNet as it is downloaded: the tars in the tar are read in place, and what is damaged costs itself."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from infra.errors import InputError
from infra.storage import location
from tests.tokenize_jobs.counted import counted
from tests.tokenize_jobs.test_sources import encoded
from tokenize_jobs.sources import imagenet
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.sources.samples import read_shard

CLASSES, IMAGES = ["n01443537", "n01440764", "n02119789"], 7
NAME = "ILSVRC2012_img_train.tar"


def packed(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return {
        f"{name}_{index}": encoded(Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)), "JPEG")
        for name in CLASSES
        for index in range(IMAGES)
    }


@pytest.fixture
def download(images, tmp_path):
    imagenet._class_tars.cache_clear()
    tars = [
        (f"{name}.tar", packed([(f"{k}.JPEG", v) for k, v in images.items() if k.startswith(name)])) for name in CLASSES
    ]
    (tmp_path / NAME).write_bytes(packed(tars))
    return tmp_path / NAME


@pytest.mark.parametrize("named", [True, False])
def test_download_is_read_in_place_with_a_shard_a_class_and_labels_by_sorted_id(named, download, images):
    listing = scan(str(download if named else download.parent))
    assert listing.classes == tuple(sorted(CLASSES))
    assert [shard.name for shard in listing.shards] == CLASSES
    samples = [sample for shard in listing.shards for sample in read_shard(listing, shard)]
    assert {s.key: s.content for s in samples} == images
    assert all(s.label == sorted(CLASSES).index(s.key.split("_")[0]) and not s.fault for s in samples)


def test_listing_a_remote_download_asks_for_its_headers_alone(download, monkeypatch):
    remote = location(f"memory://{download.parent.name}/{NAME}")
    padded = [(f"{name}.tar", bytes(2_000_000)) for name in CLASSES]
    remote.write_bytes(packed(padded))
    counts = counted(monkeypatch)
    assert scan(str(remote)).classes == tuple(sorted(CLASSES))
    assert sum(counts.ranges[: len(CLASSES)]) <= 512 * len(CLASSES)
    assert sum(counts.ranges) < 2_000_000  # its end and a sample for its digest
    assert len(counts.ranges) < 3 * len(CLASSES)


def test_download_cut_short_is_refused(download):
    download.write_bytes(download.read_bytes()[:-30_000])
    with pytest.raises(InputError, match="damaged, download it again"):
        scan(str(download))


def test_header_damaged_in_a_class_costs_its_image_and_never_reads_into_the_next_class(download):
    listing = scan(str(download))
    content = bytearray(download.read_bytes())
    for shard in listing.shards:  # the first image's header
        content[shard.span[0] + 3] ^= 1
    download.write_bytes(content)
    for shard in listing.shards:
        samples = list(read_shard(listing, shard))
        assert [s.key for s in samples if not s.fault] == [f"{shard.name}_{index}" for index in range(1, IMAGES)]
        assert [s.fault.split(" at byte")[0] for s in samples if s.fault] == [
            "no valid header and no end of the archive"
        ]


def test_thousand_ids_of_imagenet_are_shown_with_their_names_and_other_classes_as_they_are():
    ids = ["n01440764", *(f"n0{number:07d}" for number in range(1500000, 1500998)), "n15075141"]
    shown = imagenet.spoken(ids)
    assert (shown[0], shown[1], shown[-1]) == ("n01440764 tench", "n01500000 goldfish", "n15075141 toilet tissue")
    assert [name.split()[0] for name in shown] == ids
    for classes in (ids[:10], ids[::-1], ["cat"], []):
        assert imagenet.spoken(classes) == tuple(classes)
