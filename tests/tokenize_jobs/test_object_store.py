"""Sources and stores on S3, spoken for real by a server on loopback; and a bucket that nobody serves."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import s3fs

from tests.tokenize_jobs.test_job import GOOD
from tests.tokenize_jobs.test_sources import write_tar
from tokenize_jobs.crop import centre_crop, decode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory, free_port):
    """An S3 server with a bucket of images; yields the environment that points at it."""
    url = f"http://127.0.0.1:{free_port()}"
    log = (tmp_path_factory.mktemp("s3") / "server.log").open("w")
    server = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]],
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=url)
    for _ in range(100):
        try:
            files.mkdir("images")
            break
        except OSError:
            time.sleep(0.2)
    folder = tmp_path_factory.mktemp("source")
    for shard in range(2):
        write_tar(
            folder / f"s{shard}.tar",
            [(f"{shard}-{i}.{s}", c) for i in range(20) for s, c in (("png", GOOD), ("cls", b"1"))],
        )
    files.put(f"{folder}/", "images/source/", recursive=True)
    files.mkdir("latents")
    yield environment
    server.terminate()
    server.wait()


def arguments(out):
    words = "tokenize --source s3://images/source --num-classes 2 --tokenizer pixels --image-size 16 --out"
    return (*words.split(), out)


def test_store_on_s3_is_made_found_again_described_and_read(s3, mar, monkeypatch):
    made = mar(*arguments("s3://latents/root"), **s3)
    assert made.returncode == 0, made.stderr + made.stdout
    store = made.stdout.splitlines()[-1]
    assert store.startswith("s3://latents/root/artifacts/latents/own/")

    again = mar(*arguments("s3://latents/root"), **s3)
    assert again.returncode == 0, again.stderr
    assert "cached: 40 images" in again.stdout
    verified = mar("latents", store, "--verify", **s3)
    assert "verified: 2 shards are as the manifest says" in verified.stdout, verified.stderr

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    from tokenize_jobs.reader import LatentStore

    latents = LatentStore(store)
    assert len(latents) == 40
    expected = centre_crop(decode(GOOD), 16).astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    moments = latents.moments(np.arange(40), np.zeros(40, int))
    np.testing.assert_allclose(moments, np.broadcast_to(expected, moments.shape), atol=1e-3)


def test_bucket_that_nobody_serves_is_an_error_within_seconds(mar, free_port, tmp_path):
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    failed = mar(*arguments(str(tmp_path)), timeout=60, **environment)
    assert failed.returncode == 2
    assert "image source s3://images/source: cannot be read" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(tmp_path.iterdir())
