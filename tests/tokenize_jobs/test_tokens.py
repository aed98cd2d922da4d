"""Kinds of tokens: what the store keeps of each is read back equal, and its statistics are those of the values."""

from dataclasses import fields

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from infra.errors import InputError
from infra.storage import location, write_json
from tests.golden_arrays import assert_reproduced
from tests.golden_arrays import load as recorded
from tests.tokenize_jobs.test_multiscale import recorded_scales
from tokenize_jobs.results import LatentsResult
from tokenize_jobs.store.audit import describe, verify
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.pixels import from_uint8, to_uint8
from tokenize_jobs.tokens import Codes, GaussianLatents, MultiScaleCodes, PlainLatents, SubPixels, read_kind

KINDS = [GaussianLatents(4, 3, 2), PlainLatents(4, 3, 2), Codes(200, 3, 2), Codes(257, 3, 2), Codes(16384, 3, 2)]
KINDS += [MultiScaleCodes(300, 8, (1, 2, 4), 4), SubPixels(3, 2)]
PROVENANCE = {
    "tokenizer": {"kind": "k", "weights": "w"}, "image_size": 3, "classes": ["a"],
    "source": {"format": "webdataset", "shards": 2, "digest": "d" * 64, "bytes": 1},
}  # fmt: skip


def stored(kind, root, values):
    """Write values (2, N, *shape) as two shards."""
    half = values.shape[1] // 2
    for name, rows in (("a", slice(0, half)), ("b", slice(half, None))):
        first, mirrored = values[0, rows], values[1, rows]
        keys = [f"k{i}" for i in range(len(first))]
        commit_shard(root, name, to_table(kind, keys, [0] * len(first), first, mirrored), kind, [])
    return publish(root, ["a", "b"], kind, PROVENANCE)


def some(kind, count):
    random = np.random.default_rng(0)
    if isinstance(kind, Codes | MultiScaleCodes):
        return random.integers(kind.codebook_size, size=(2, count, *kind.shape)).astype(kind.dtype)
    if isinstance(kind, SubPixels):
        return random.integers(256, size=(2, count, *kind.shape)).astype(kind.dtype)
    return random.standard_normal((2, count, *kind.shape)).astype(kind.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kind_is_read_back_from_its_layout(kind):
    assert read_kind(kind.described()) == kind


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_of_every_kind_are_read_back_equal_and_mapped(kind, tmp_path):
    root, values = location(tmp_path), some(kind, 50)
    stored(kind, root, values)
    opened = LatentStore(root)
    order, flips = np.random.default_rng(1).permutation(50), np.arange(50) % 2
    found = opened.stored(order, flips)
    assert found.dtype == kind.dtype
    assert np.array_equal(found, values[flips, order])
    assert not any(column.flags.owndata or column.flags.writeable for pair in opened._values for column in pair)
    assert kind.told() in describe(root)
    assert verify(root) == 2


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_a_kind_measures_is_told_by_the_result_of_the_step(kind):
    assert set(kind.numbers) <= {field.name for field in fields(LatentsResult)}


@pytest.mark.parametrize(("size", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_codes_are_kept_in_the_smallest_integers_that_hold_them(size, dtype):
    assert Codes(size, 1, 1).dtype == np.dtype(dtype)


def test_codes_have_a_column_of_their_own_and_no_scale(tmp_path):
    kind, root = Codes(300, 3, 2), location(tmp_path)
    values = some(kind, 40)
    manifest = stored(kind, root, values)
    assert pq.read_schema(str(root / "shards" / "a.parquet")).names == ["key", "label", "codes", "codes_flip"]
    assert not {"latent_scale", "channel_mean"} & set(manifest)
    batch = LatentStore(root).batch(0, range(40)).latents
    assert batch.dtype == np.float32
    assert batch.shape == (40, 1, 3, 2)
    assert {image.tobytes() for image in batch[:, 0].astype(np.uint16)} <= {
        image.tobytes() for image in values.reshape(-1, 3, 2)
    }


def test_usage_and_perplexity_are_those_of_the_codes(tmp_path):
    kind = Codes(8, 2, 2)
    values = np.array([0, 1, 1, 3] * 2 * 6, np.uint8).reshape(2, 6, 2, 2)
    manifest = stored(kind, location(tmp_path), values)
    assert manifest["codebook_usage"] == pytest.approx(3 / 8)
    assert manifest["codebook_perplexity"] == pytest.approx(np.exp(-(0.5 * np.log(0.25) + 0.5 * np.log(0.5))))
    assert kind.warning(manifest, 6) == ""


@pytest.mark.parametrize("kind", [GaussianLatents(2, 3, 2), PlainLatents(2, 3, 2)], ids=str)
def test_bits_of_the_best_constant_gaussian_are_what_it_costs(kind, tmp_path):
    draws = np.random.default_rng(0).standard_normal((2, 40, *kind.shape))
    draws[:, :, :1] = draws[:, :, :1] * 3 + 5
    draws[:, :, 2:] = -30  # log variances: of a posterior that is a point
    values = draws.astype(np.float16)
    manifest = stored(kind, location(tmp_path), values)
    numbers = values[:, :, :2].astype(float).swapaxes(0, 2).reshape(2, -1) * manifest["latent_scale"]
    mean, deviation = numbers.mean(1, keepdims=True), numbers.std(1, keepdims=True)
    density = np.exp(-0.5 * ((numbers - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
    assert kind.measured(manifest)["gaussian_bits"] == pytest.approx(-np.log2(density).mean(), rel=1e-6)


def test_constant_channel_has_no_bits_of_a_gaussian(tmp_path):
    kind, values = PlainLatents(2, 3, 2), some(PlainLatents(2, 3, 2), 10)
    values[:, :, 0] = 1
    assert set(kind.measured(stored(kind, location(tmp_path), values))) == {"latent_scale"}


def test_collapsed_codebook_is_told(tmp_path):
    kind, root = Codes(300, 2, 2), location(tmp_path)
    manifest = stored(kind, root, np.zeros((2, 6, 2, 2), kind.dtype))
    assert manifest["codebook_perplexity"] == pytest.approx(1)
    assert "collapsed: 0.3% of its 300 codes" in manifest["warning"]
    assert manifest["warning"] in describe(root)


@pytest.mark.parametrize("kind", [Codes(16384, 3, 2), MultiScaleCodes(16384, 8, (1, 2), 4)], ids=str)
def test_few_images_have_not_collapsed_a_large_codebook(kind, tmp_path):
    assert "warning" not in stored(kind, location(tmp_path), some(kind, 50))


def test_layout_of_no_known_kind_is_refused_with_what_it_says(tmp_path):
    for described in ({"kind": "waves", "height": 2}, {"kind": "codes", "depth": 2}, {"height": 2}):
        with pytest.raises(InputError, match=rf"layout is .*{next(iter(described.values()))}.*no kind known here"):
            read_kind(described)


def test_shards_without_the_column_of_the_manifest_are_refused_with_what_they_have(tmp_path):
    root = location(tmp_path)
    manifest = stored(Codes(256, 3, 2), root, some(Codes(256, 3, 2), 10))
    write_json(root / "manifest.json", manifest | {"layout": PlainLatents(4, 3, 2).described(), "latent_scale": 1.0})
    with pytest.raises(InputError, match=r"a\.parquet: has columns key, label, codes, codes_flip, not moments"):
        LatentStore(root)


def test_usage_of_each_scale_is_kept_and_shown(tmp_path):
    kind, root = MultiScaleCodes(8, 4, (1, 2), 2), location(tmp_path)
    one, two = np.array([[3, 0, 1, 1, 2]], np.uint8), np.array([[4, 0, 1, 1, 2]], np.uint8)
    manifest = stored(kind, root, np.concatenate([one, two] * 6).reshape(2, 6, 5))
    assert manifest["codebook_usage"] == pytest.approx(5 / 8)
    assert manifest["scale_usage"] == pytest.approx([2 / 8, 3 / 8])
    assert manifest["scale_perplexity"] == pytest.approx([2, np.exp(-(0.5 * np.log(0.25) + 0.5 * np.log(0.5)))])
    assert "1x1" in describe(root)


def test_entropy_of_sub_pixels_is_the_mean_of_the_colours(tmp_path):
    kind = SubPixels(2, 2)
    red, green, blue = [0, 0, 255, 255], [1, 2, 3, 4], [9, 9, 9, 9]  # 1, 2 and 0 bits
    values = np.broadcast_to(np.array([red, green, blue], np.uint8).reshape(3, 2, 2), (2, 6, 3, 2, 2))
    assert stored(kind, location(tmp_path), values)["sub_pixel_entropy"] == pytest.approx(1)


def test_sub_pixels_are_exact_both_ways():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tokenizer = load("sub-pixels", "")
    values = tokenizer.encode(from_uint8(images))
    assert values.numpy().transpose(0, 2, 3, 1).tobytes() == images.tobytes()
    assert to_uint8(tokenizer.decode(values.float())).tobytes() == images.tobytes()


def test_counts_of_codes_are_those_whose_moving_average_was_recorded():
    """The first of all updates is taken as it is, each later one with a weight of 0.1."""
    golden, sides = recorded("var_tiny"), (1, 2, 3, 4)
    scales, kind = recorded_scales(golden.arrays), MultiScaleCodes(64, 8, sides, 4)
    counts = [
        torch.tensor(kind.sums([scales.encode(golden.arrays[name], sides).numpy()])["count"])
        for name in ("vq.f", "vqtrain.f2")
    ]
    first = torch.cat([counts[0][:1], 0.1 * counts[0][1:]])
    hits = [first, 0.9 * first + 0.1 * counts[1]]
    margin = 0.08 * 2 * sides[-1] ** 2 / 64
    for time, found in enumerate(hits, 1):
        assert_reproduced(found, golden.arrays[f"vqtrain.hits{time}"])
        shares = 100 * (found >= margin).float().mean(1)
        assert shares.tolist() == pytest.approx(golden.meta["vqtrain"][f"usages{time}"])
