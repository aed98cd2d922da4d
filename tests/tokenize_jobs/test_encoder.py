"""What an encoder computes in: fp32 is the tokenizer's own, less is measured against it; and two calls at a time."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.tokenize_jobs.test_sources import encoded
from tokenize_jobs.config import Tokenize, TokenizerFile
from tokenize_jobs.job.encoder import Encoder, PartEncoder
from tokenize_jobs.job.heldout_job import _encode
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokenizers.small_kl import Shape, SmallKL
from tokenize_jobs.tokens import Codes, GaussianLatents

KIND = GaussianLatents(4, 4, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
BF16_ERROR = 0.1
"""Of the root mean square: 8 bits of mantissa through some ten layers."""


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = SmallKL(Shape(stride=4, channels=4, width=16, depth=1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # blocks are born as the identity
    model.write(tmp_path)
    return TokenizerFile("fitted", str(tmp_path), "w")


def test_fp32_is_what_the_tokenizer_itself_encodes_and_has_no_error(weights):
    encoder = Encoder(weights, KIND, 8)
    expected = SmallKL.read(weights.path).encode(from_uint8(np.concatenate([IMAGES, np.zeros_like(IMAGES[:3])])))
    assert np.array_equal(encoder(IMAGES), expected[:5].half().numpy())
    assert set(encoder.error(IMAGES).values()) == {0.0}


def test_bf16_is_near_fp32_by_the_error_that_is_told(weights):
    exact, rounded = (Encoder(weights, KIND, 1, precision) for precision in ("fp32", "bf16"))
    difference = rounded(IMAGES).astype(np.float64) - exact(IMAGES).astype(np.float64)
    scale = np.sqrt(np.square(exact(IMAGES).astype(np.float64)).mean())
    told = rounded.error(IMAGES)
    assert told["relative_rms"] == pytest.approx(np.sqrt(np.square(difference).mean()) / scale, rel=0.05)  # half rounds
    assert 0 < told["relative_rms"] < BF16_ERROR
    assert told["relative_rms"] < told["relative_largest"]


def test_held_out_latents_are_encoded_in_the_precision_of_the_others(weights, tmp_path):
    for place, image in enumerate(IMAGES):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{place}.png").write_bytes(encoded(Image.fromarray(image)))
    config = Tokenize(image_size=16, batch_size=2, precision="bf16")
    _encode(config, weights, scan(str(tmp_path / "in")), len(IMAGES), str(tmp_path / "out"), 1)
    stored = LatentStore(str(tmp_path / "out")).stored(np.arange(5), np.zeros(5, int))
    assert np.array_equal(stored, Encoder(weights, KIND, 2, "bf16")(IMAGES))
    assert not np.array_equal(stored, Encoder(weights, KIND, 2)(IMAGES))


def test_of_codes_the_share_that_differ_is_told(weights):
    class Signs:
        def encode(self, images):
            dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
            return (images.mean((1, 2, 3)) * 1e3).to(dtype).long()

    encoder = Encoder(weights, Codes(4096, 1, 1), 1, "bf16")
    encoder.tokenizer = Signs()
    means = from_uint8(IMAGES).mean((1, 2, 3)) * 1e3
    share = float((means.to(torch.bfloat16).long() != means.long()).float().mean())
    assert encoder.error(IMAGES) == {"differing": pytest.approx(share)}


def test_two_parts_at_a_time_are_staged_as_one_after_the_other_would_be(weights, tmp_path):
    def staged(folder, at_once):
        encoder = PartEncoder(weights, KIND, Tokenize(image_size=16, batch_size=2), str(tmp_path / folder))
        rows = [
            {"shard": 0, "index": index, "last": index == 5, "keys": [f"{index}"], "labels": [index], "size": 16,
             "images": IMAGES[index % 5].tobytes(), "rejected_keys": [], "rejected_reasons": [], "fault": ""}
            for index in range(6)
        ]  # fmt: skip
        with ThreadPoolExecutor(at_once) as pool:
            told = list(pool.map(encoder, rows))
        assert all(row["started"] <= row["stopped"] for row in told)
        spans = sorted((row["started"], row["stopped"]) for row in told)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        return [pq.read_table(row["path"]).to_pydict() for row in told]

    assert staged("two", 2) == staged("one", 1)
