"""The bad-input zoo: each image is handled as Pillow handles it, or set aside with its reason; never its neighbours."""

import errno
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile
from PIL import Image
from upath import UPath

from infra.errors import InputError
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.sources.samples import read_shard

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[274] = 6
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)


HANDLED = {
    "rgb": (encoded(Image.fromarray(PIXELS)), PIXELS),
    "greyscale": (
        encoded(Image.fromarray(PIXELS).convert("L")),
        np.asarray(Image.fromarray(PIXELS).convert("L").convert("RGB")),
    ),
    "alpha": (encoded(Image.fromarray(PIXELS).convert("RGBA")), PIXELS),
    "palette": (
        encoded(Image.fromarray(PIXELS).convert("P")),
        np.asarray(Image.fromarray(PIXELS).convert("P").convert("RGB")),
    ),
    "16-bit": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8)), np.repeat(PIXELS[..., :1], 3, 2)),
    "webp": (encoded(Image.fromarray(PIXELS), "WEBP", lossless=True), PIXELS),
    "animated": (
        encoded(
            Image.fromarray(PIXELS), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]
        ),
        PIXELS,
    ),
}


@pytest.mark.parametrize("kind", list(HANDLED))
def test_decode_unusual_image_equals_pillows_own_result(kind):
    content, expected = HANDLED[kind]
    assert np.array_equal(np.asarray(decode(content)), expected)


def test_decode_cmyk_equals_pillows_conversion():
    content = encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")
    assert np.array_equal(np.asarray(decode(content)), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_decode_exif_rotated_image_is_upright():
    assert decode(rotated()).size == (40, 56)


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""
    header = bytearray(encoded(Image.fromarray(PIXELS)))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)


BAD = {
    "truncated": (encoded(Image.fromarray(PIXELS), "JPEG")[:-300], "cannot be decoded"),
    "not an image": (b"hello", "cannot be decoded"),
    "empty": (b"", "cannot be decoded"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "too small"),
    "bomb": (bomb(), "bomb"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_decode_bad_image_gives_its_reason(kind):
    content, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason):
        decode(content)


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (300, 200), (33, 700), (32, 32), (31, 31)])
def test_centre_crop_gives_the_size_asked_for(size):
    assert centre_crop(Image.new("RGB", size), 32).shape == (32, 32, 3)


def test_centre_crop_of_the_right_size_changes_nothing():
    square = PIXELS[:40, :40]
    assert np.array_equal(centre_crop(Image.fromarray(square), 40), square)


GOOD = HANDLED["rgb"][0]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def arrow_stream(table):
    with pa.BufferOutputStream() as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue().to_pybytes()


def npz_of(images):
    buffer = io.BytesIO()
    np.savez(buffer, images)
    return buffer.getvalue()


def read(folder, classes=3):
    manifest = scan(str(folder), classes)
    return {sample.key: sample for shard in manifest.shards for sample in read_shard(manifest, shard)}


def test_tar_with_every_fault_keeps_the_good_samples(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("good.png", GOOD), ("good.cls", b"1"),
            ("upper.JPEG", GOOD), ("upper.json", json.dumps({"label": 2}).encode()),
            ("nolabel.png", GOOD),
            ("outside.png", GOOD), ("outside.cls", b"3"),
            ("textlabel.png", GOOD), ("textlabel.cls", b"cat"),
            ("../../etc/evil.png", GOOD), ("../../etc/evil.cls", b"0"),
            ("/abs/evil.png", GOOD), ("/abs/evil.cls", b"0"),
            ("pickled.pkl", pickle.dumps(1)), ("pickled.cls", b"0"),
            ("good.png", GOOD), ("good.cls", b"1"),
            ("last.png", GOOD), ("last.cls", b"0"),
        ],
    )  # fmt: skip
    manifest = scan(str(tmp_path), 3)
    samples = list(read_shard(manifest, manifest.shards[0]))
    assert [(s.key, s.label) for s in samples if not s.fault] == [("good", 1), ("upper", 2), ("last", 0)]
    assert [(s.key, s.fault.split(":")[0]) for s in samples if s.fault] == [
        ("nolabel", "no label"),
        ("outside", "label 3 is not in 0..2"),
        ("textlabel", "label 'cat' is the name of no class"),
        ("../../etc/evil", "unsafe path in the tar"),
        ("/abs/evil", "unsafe path in the tar"),
        ("pickled", "no image"),
        ("good", "duplicate id"),
    ]


def test_truncated_tar_keeps_its_good_prefix_and_says_where_it_ends(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [(f"{i}.{suffix}", content) for i in range(4) for suffix, content in (("cls", b"0"), ("png", GOOD))],
    )
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 3 * (1024 + 512 + len(GOOD) // 512 * 512 + 512) + 700])
    samples = read(tmp_path)
    assert [key for key, s in samples.items() if not s.fault][:2] == ["0", "1"]
    assert any("no end of the archive" in s.fault for s in samples.values())


def test_folder_of_classes_is_read_with_sorted_labels(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.JPEG").write_bytes(GOOD)
    manifest = scan(str(tmp_path))
    assert manifest.classes == ("a", "b")
    assert {s.key: s.label for s in read(tmp_path, 0).values()} == {"a/x.JPEG": 0, "b/x.JPEG": 1}


@pytest.mark.parametrize("suffix", ["TAR", "PARQUET", "ARROW", "NPZ"])
def test_names_in_capitals_are_read_as_others_are(suffix, tmp_path):
    table = pa.table({"image": [{"bytes": HANDLED["rgb"][0], "path": "a.png"}], "label": [1]})
    write = {
        "TAR": lambda path: write_tar(path, [("a.png", HANDLED["rgb"][0]), ("a.cls", b"1")]),
        "PARQUET": lambda path: pq.write_table(table, path),
        "ARROW": lambda path: path.write_bytes(arrow_stream(table)),
        "NPZ": lambda path: path.write_bytes(npz_of(PIXELS[None, :40, :40])),
    }
    write[suffix](tmp_path / f"part-0.{suffix.lower()}")
    small = [(of.content, of.label, of.fault) for of in read(tmp_path).values()]
    (tmp_path / f"part-0.{suffix.lower()}").rename(tmp_path / f"part-0.{suffix}")
    assert len(small) == 1
    assert [(of.content, of.label, of.fault) for of in read(tmp_path).values()] == small


def test_parquet_in_the_hugging_face_layout_is_read(tmp_path):
    image = pa.array([{"bytes": GOOD, "path": "x"}, {"bytes": None, "path": "y"}])
    pq.write_table(pa.table({"image": image, "label": [2, 0]}), tmp_path / "train.parquet")
    assert [(s.label, s.fault) for s in read(tmp_path).values()] == [(2, ""), (-1, "no image bytes")]


def test_parquet_row_group_that_is_damaged_costs_no_other(tmp_path):
    table = pa.table({"image": [bytes([i]) * 999 + GOOD for i in range(6)], "label": [0, 1, 2, 0, 1, 2]})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    path.write_bytes(content)
    samples = read(tmp_path)
    assert {key: s.label for key, s in samples.items() if not s.fault} == {
        "000000": 0, "000001": 1, "000004": 1, "000005": 2
    }  # fmt: skip
    assert "row group cannot be read" in samples["000002..."].fault


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "storage failed"), PermissionError("storage failed"), FileNotFoundError("storage failed"), TimeoutError("storage failed")],
    ids=lambda of: type(of).__name__,
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["tar", "parquet", "npz"])
def test_storage_that_fails_while_a_shard_is_read_is_an_error_and_no_bad_sample(suffix, error, tmp_path, monkeypatch):
    """Object stores' clients raise errors without a number, as for credentials that have expired."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "tar":
        write_tar(path, [(f"{i}.{s}", c) for i in range(400) for s, c in (("png", GOOD), ("cls", b"0"))])
    elif suffix == "npz":
        np.savez(path, arr_0=np.zeros((400, 64, 64, 3), np.uint8), arr_1=np.zeros(400, int))
    else:
        table = pa.table({"image": [GOOD] * 400, "label": [0] * 400})
        pq.write_table(table, path, row_group_size=100, use_dictionary=False)
    root = UPath(f"memory://{tmp_path}")
    (root / path.name).write_bytes(path.read_bytes())
    manifest = scan(str(root), 3)
    samples = read_shard(manifest, manifest.shards[0])
    assert not next(samples).fault

    def failing(*_):
        raise error

    monkeypatch.setattr(MemoryFile, "read", failing)
    with pytest.raises(OSError, match="storage failed"):
        list(samples)


def test_source_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        scan(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds no \.tar"):
        scan(str(tmp_path))


def test_digest_changes_with_the_content_of_a_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", GOOD), ("x.cls", b"1")])
    before = scan(str(tmp_path), 3).digest
    write_tar(tmp_path / "a.tar", [("x.png", GOOD), ("x.cls", b"2")])
    assert scan(str(tmp_path), 3).digest != before


def test_sample_that_is_in_a_tar_twice_is_read_once_and_recorded(tmp_path):
    good = encoded(Image.fromarray(PIXELS))
    members = [("1.png", good), ("1.cls", b"0"), ("1.png", good), ("1.cls", b"0"), ("2.png", good), ("2.cls", b"0")]
    write_tar(tmp_path / "a.tar", members)
    listing = scan(str(tmp_path), 1)
    found = list(read_shard(listing, listing.shards[0]))
    assert [(sample.key, sample.fault) for sample in found] == [("1", ""), ("1", "duplicate id"), ("2", "")]


@pytest.mark.parametrize("size", [(8, 4000), (4000, 8)])
def test_thread_of_an_image_is_refused_before_it_is_scaled_up(size):
    with pytest.raises(BadImage, match="too narrow"):
        decode(encoded(Image.new("RGB", size)))
