"""Sources and stores on S3, spoken for real by a server on loopback; and a bucket that nobody serves."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from PIL import Image

from tests.pipeline.tiny import TINY
from tests.tokenize_jobs.test_job import GOOD
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.sources.crop import centre_crop, decode
from tokenize_jobs.tokenizers.small import Shape
from tokenize_jobs.tokenizers.small_kl import SmallKL

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 server with a bucket of images; yields the environment that points at it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=url)
    files.mkdir("images")
    folder = tmp_path_factory.mktemp("source")
    for shard in range(2):
        write_tar(
            folder / f"s{shard}.tar",
            [(f"{shard}-{i}.{s}", c) for i in range(20) for s, c in (("png", GOOD), ("cls", b"1"))],
        )
    files.put(f"{folder}/", "images/source/", recursive=True)
    files.mkdir("latents")
    yield environment
    server.stop()


def arguments(out):
    source = "s3://images/source"
    words = f"tokenize {source} --images.num-classes 2 --tokenizer pixels"
    return (
        *words.split(),
        "--tokenize.image-size",
        "16",
        "--compute.latents",
        "s3://latents/root",
        "--compute.out",
        str(out),
    )


def test_store_on_s3_is_made_found_again_described_and_read(s3, mar, monkeypatch, tmp_path):
    made = mar(*arguments(tmp_path), **s3)
    assert made.returncode == 0, made.stderr + made.stdout
    store = made.stdout.splitlines()[-1]
    assert store.startswith("s3://latents/root/artifacts/latents/pixels-16/")

    again = mar(*arguments(tmp_path), **s3)
    assert again.returncode == 0, again.stderr
    assert re.search(r"latents \| cached .*images 40", again.stdout)
    verified = mar("latents", store, "--verify", **s3)
    assert "verified: 2 shards are as the manifest says" in verified.stdout, verified.stderr

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one that an earlier test made knows that one's server
    from tokenize_jobs.store.reader import LatentStore

    latents = LatentStore(store)
    assert len(latents) == 40
    expected = centre_crop(decode(GOOD), 16).astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    moments = latents.stored(np.arange(40), np.zeros(40, int))
    np.testing.assert_allclose(moments, np.broadcast_to(expected, moments.shape), atol=1e-3)


@pytest.mark.chaos  # two whole runs: slow, not violent
def test_training_streams_the_latents_of_a_bucket(s3, mar, tmp_path):
    command = ("train", "emoji-32", *TINY, "--compute.out", str(tmp_path), "--compute.latents", "s3://latents/shared")
    trained = mar(*command, **s3)
    assert trained.returncode == 0, trained.stderr + trained.stdout
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {
        "pictures",
        "tokenizer",
        "reference",
        "checkpoint",
    }
    again = mar(*command, **s3)
    assert "latents | cached" in " ".join(again.stdout.split())
    assert list((tmp_path / "artifacts" / "checkpoint").glob("emoji-32/*/ema.safetensors"))


FORWARDER = """
import asyncio, sys

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def connect(reader, writer):
    to_server = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(copy(reader, to_server[1]), copy(to_server[0], writer))

async def main():
    async with await asyncio.start_server(connect, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def network(s3, free_port):
    """A port that leads to the S3 server while the process that this returns a starter of is alive."""
    port, server = free_port(), s3["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]
    started = []

    def start():
        started.append(
            subprocess.Popen([sys.executable, "-c", FORWARDER, str(port), server], stderr=subprocess.DEVNULL)
        )
        return started[-1]

    yield start, {**s3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    for process in started:
        process.kill()


@pytest.mark.chaos
def test_bucket_that_goes_away_is_an_error_and_the_rerun_goes_on(s3, network, mar, tmp_path):
    """The store is on the bucket; its shards are encoded slowly enough for the network to fail in between."""
    for shard in range(6):
        noise = np.random.default_rng(shard).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
        pictures = [encoded(Image.fromarray(image).resize((64, 64))) for image in noise]
        members = [(f"{shard}-{i}.{s}", c) for i, png in enumerate(pictures) for s, c in (("png", png), ("cls", b"0"))]
        write_tar(tmp_path / f"s{shard}.tar", members)
    SmallKL(Shape(stride=4, channels=4, width=64, depth=2)).write(tmp_path / "tokenizer")
    words = f"tokenize {tmp_path} --images.num-classes 1 --tokenize.image-size 64"
    tokenizer, out = f"fitted:{tmp_path / 'tokenizer'}", str(tmp_path / "out")
    command = [
        *words.split(),
        "--tokenizer",
        tokenizer,
        "--compute.latents",
        "s3://latents/outage",
        "--compute.out",
        out,
    ]
    start, environment = network
    line = start()
    files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=s3["AWS_ENDPOINT_URL"], use_listings_cache=False)

    def cut_after_the_first_shard():
        while not files.glob("latents/outage/artifacts/latents/fitted-64/*/commits/*.json"):
            time.sleep(0.1)
        line.kill()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(cut_after_the_first_shard)
        failed = mar(*command, **environment)
    assert failed.returncode == 2, failed.stderr
    assert "Could not connect" in failed.stderr
    assert "run again to go on" in failed.stderr
    assert "Traceback" not in failed.stderr

    kept = files.glob("latents/outage/artifacts/latents/fitted-64/*/commits/*.json")
    start()
    again = mar(*command, **environment)
    assert again.returncode == 0, again.stderr
    assert f"6 shards, {len(kept)} committed before" in again.stdout
    assert re.search(r"latents \| done .*images 600, quarantined 0", again.stdout)


def test_bucket_that_nobody_serves_is_an_error_within_seconds(mar, free_port, tmp_path):
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    failed = mar(*arguments(tmp_path), timeout=60, **environment)
    assert failed.returncode == 2
    assert "image source s3://images/source: cannot be read" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(tmp_path.iterdir())
