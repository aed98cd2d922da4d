"""Tars that are damaged at random: a header costs one sample, and no loss is without its record.

What no reader can see is left out of the promise: bytes changed inside an image or a label that still read as one.
"""

import io
import json
import tarfile
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from infra.storage import location
from tests.tokenize_jobs.test_sources import encoded
from tokenize_jobs.sources.shard import Shard
from tokenize_jobs.sources.webdataset import WEBDATASET

SAMPLES, ROUNDS, MANY_ROUNDS = 40, 150, 1000


@dataclass(frozen=True)
class Tar:
    """An undamaged tar, and where its samples lie: (first byte of the headers, end of the content) of each member."""

    content: bytes
    keys: list[str]
    images: list[bytes]
    spans: list[list[tuple[int, int]]]


def tar_of(form, name="{:04d}", seed=0):
    random, buffer = np.random.default_rng(seed), io.BytesIO()
    keys, images, spans = [], [], []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for index in range(SAMPLES):
            side = int(random.integers(8, 40))
            png = encoded(Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)))
            meta = json.dumps({"caption": "x" * int(random.integers(5, 900))}).encode()
            members = [("png", png), ("cls", str(index).encode()), ("json", meta)]
            key = name.format(index)
            spans.append([])
            for suffix, content in (members, members[::-1])[index % 2]:
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
                start = tar.offset
                tar.addfile(info, io.BytesIO(content))
                spans[-1].append((start, tar.offset - (-len(content) % 512)))
            keys.append(key)
            images.append(png)
    return Tar(buffer.getvalue(), keys, images, spans)


TARS = {
    "ustar": tar_of(tarfile.USTAR_FORMAT),
    "pax": tar_of(tarfile.PAX_FORMAT),
    "gnu long names": tar_of(tarfile.GNU_FORMAT, "some/folder/" + "n" * 150 + "{:04d}"),
    "pax long names": tar_of(tarfile.PAX_FORMAT, "some/folder/" + "n" * 250 + "{:04d}"),
}


def read(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    return list(WEBDATASET.read(location(tmp_path), Shard("a", ("a.tar",)), lambda key: True, "label"))


@dataclass(frozen=True)
class Damage:
    """Bytes [at, at + length) of the tar flipped or cut, or random bytes inserted before `at`."""

    kind: str
    at: int
    length: int

    def apply(self, content, random):
        head, hit, tail = content[: self.at], content[self.at : self.at + self.length], content[self.at + self.length :]
        more = random.integers(1, 256, self.length, dtype=np.uint8)
        if self.kind == "flip":
            return head + (np.frombuffer(hit, np.uint8) ^ more[: len(hit)]).tobytes() + tail
        return head + tail if self.kind == "cut" else head + more.tobytes() + hit + tail

    def touches(self, start, stop):
        """Tell whether bytes [start, stop) are changed, or bytes come in between."""
        if self.kind == "insert":
            return start < self.at <= stop  # right after a content none can tell whether they are of it
        return self.at < stop and start < self.at + self.length


def random_damage(content, random):
    kind = ("flip", "cut", "insert")[random.integers(3)]
    length = int(random.choice([1, 1, int(random.integers(1, 40)), int(random.integers(1, 5000)), 512]))
    return Damage(kind, int(random.integers(len(content))), 1 if kind == "flip" and random.random() < 0.7 else length)


def check(tar, damages, samples):
    """Hold the promise to the samples that were read of a tar with these damages."""
    index_of = {key: index for index, key in enumerate(tar.keys)}
    whole = {
        index for index, spans in enumerate(tar.spans)
        if not any(damage.touches(*span) for damage in damages for span in spans)
    }  # fmt: skip
    read_whole = {index_of[s.key]: s for s in samples if not s.fault and s.key in index_of}
    missing = whole - set(read_whole)
    assert not missing, (missing, damages)
    for index in whole:
        assert read_whole[index].content == tar.images[index]
        assert read_whole[index].label == index
    # a lost sample has a record of its own, or one between the neighbours before and after it
    order = [(index_of.get(sample.key), sample.fault) for sample in samples]
    for lost in set(range(SAMPLES)) - set(read_whole):
        before = max(
            (place for place, (i, fault) in enumerate(order) if i is not None and i < lost and not fault), default=-1
        )
        after = min(
            (place for place, (i, fault) in enumerate(order) if i is not None and i > lost and not fault),
            default=len(order),
        )
        assert any(fault for _, fault in order[before + 1 : after]), (lost, damages)


@pytest.mark.parametrize("kind", list(TARS))
def test_undamaged_tar_is_read_whole_without_a_fault(kind, tmp_path):
    tar = TARS[kind]
    samples = read(tar.content, tmp_path)
    assert [(s.key, s.content, s.label, s.fault) for s in samples] == [
        (key, image, index, "") for index, (key, image) in enumerate(zip(tar.keys, tar.images, strict=True))
    ]


@pytest.mark.parametrize("kind", list(TARS))
@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(MANY_ROUNDS, marks=pytest.mark.chaos)])
def test_tar_damaged_anywhere_loses_only_what_was_hit_and_records_it(kind, rounds, tmp_path):
    tar = TARS[kind]
    for seed in range(rounds):
        random = np.random.default_rng([seed, list(TARS).index(kind)])
        damage = random_damage(tar.content, random)
        check(tar, [damage], read(damage.apply(tar.content, random), tmp_path))


@pytest.mark.parametrize("place", ["name", "checksum", "size", "magic"])
@pytest.mark.parametrize("kind", list(TARS))
def test_tar_header_with_one_byte_changed_costs_one_sample(kind, place, tmp_path):
    tar = TARS[kind]
    offset = {"name": 3, "checksum": 150, "size": 130, "magic": 259}[place]
    for index in (0, 17, SAMPLES - 1):
        for start, _ in tar.spans[index]:
            content = bytearray(tar.content)
            content[start + offset] ^= 0x11
            samples = read(bytes(content), tmp_path)
            good = [s.key for s in samples if not s.fault]
            assert set(tar.keys) - set(good) <= {tar.keys[index]}
            assert any(s.fault for s in samples)


@pytest.mark.parametrize("kind", list(TARS))
def test_tar_image_that_lost_whole_blocks_costs_itself(kind, tmp_path):
    """The next header lies where it is not expected, and one of its own later blocks may lie where it is."""
    tar, found = TARS[kind], 0
    for index, image in enumerate(tar.images):
        for blocks in range(1, (len(image) - 300) // 512):
            end = next(stop for start, stop in tar.spans[index] if tar.content[start:stop].endswith(image))
            damage = Damage("cut", end - 512 * blocks - 200, 512 * blocks)
            check(tar, [damage], read(damage.apply(tar.content, np.random.default_rng(0)), tmp_path))
            found += 1
    assert found > 50


def test_tar_without_its_end_blocks_is_read_whole_and_recorded(tmp_path):
    tar = TARS["ustar"]
    end = -(-tar.spans[-1][-1][1] // 512) * 512
    for content in (tar.content[:end], tar.content[: end + 512]):
        samples = read(content, tmp_path)
        assert [s.key for s in samples if not s.fault] == tar.keys
        assert [s.fault.split(" at byte")[0] for s in samples if s.fault] == [
            "no valid header and no end of the archive"
        ]


def test_tar_that_goes_on_after_its_end_is_read_on(tmp_path):
    """As `cat a.tar b.tar` makes it."""
    first, second = TARS["ustar"], TARS["pax"]
    other = tar_of(tarfile.USTAR_FORMAT, "other{:04d}")
    samples = read(first.content + other.content, tmp_path)
    assert [s.key for s in samples if not s.fault] == [*first.keys, *other.keys]
    assert len(second.keys) == SAMPLES
    assert sum(bool(s.fault) for s in samples) == 1


def test_tar_of_random_bytes_is_one_fault(tmp_path):
    for seed in range(20):
        random = np.random.default_rng(seed)
        samples = read(random.bytes(int(random.integers(0, 20000))), tmp_path)
        assert [bool(s.fault) for s in samples] == [True]


def test_member_names_that_are_no_utf_8_can_be_stored(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for suffix, content in (("png", TARS["ustar"].images[0]), ("cls", b"1")):
            info = tarfile.TarInfo(f"café.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (sample,) = read(buffer.getvalue(), tmp_path)
    assert sample.key.encode() == "caf\N{REPLACEMENT CHARACTER}".encode()
    assert sample.label == 1
