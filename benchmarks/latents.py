"""The latent store measured: reading against npz files and a memory map, the job's encoders, its driver's memory.

    python -m benchmarks.latents [--images FOLDER --classes N --tokenizer KIND:PATH --size PIXELS]

Without a folder it tokenizes pictures of its own with a small autoencoder. Prints Markdown.
"""

import argparse
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import conditions, ratio
from infra.cluster import Compute, Stage, quiet_environment
from infra.console import say
from infra.storage import location
from tokenize_jobs import tokenizers
from tokenize_jobs.config import Tokenize
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokens import GaussianLatents

KL16 = GaussianLatents(16, 16, 16)
READ_IMAGES, READ_BATCH = 3000, 64


def synthetic_shards(folder: Path, shards: int, images: int, size: int) -> None:
    """Write WebDataset shards of smooth random pictures, labels 0 and 1."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        random = np.random.default_rng(shard)
        with tarfile.open(folder / f"s{shard:04d}.tar", "w") as tar:
            for index in range(images):
                small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                buffer = io.BytesIO()
                small.resize((size, size)).save(buffer, "JPEG")
                for suffix, content in (("jpg", buffer.getvalue()), ("cls", str(index % 2).encode())):
                    info = tarfile.TarInfo(f"{shard}-{index}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def items_per_cpu_second(read: Callable[[np.ndarray], object], count: int) -> float:
    """Return images read in each second of processor time, in random order, with a warm page cache."""
    order = np.random.default_rng(0).permutation(count)
    best = 0.0
    for _ in range(4):  # the first round warms the cache
        start = time.process_time()
        for position in range(0, count - READ_BATCH + 1, READ_BATCH):
            read(order[position : position + READ_BATCH])
        best = max(best, (count // READ_BATCH * READ_BATCH) / (time.process_time() - start))
    return best


def reading(folder: Path) -> list[str]:
    """Compare the reader with one npz an image, as the published code stores latents, and with a plain memory map."""
    moments = np.random.default_rng(0).standard_normal((2, READ_IMAGES, *KL16.shape)).astype(np.float16)
    root = location(folder / "store")
    keys, labels = [f"{index:08d}" for index in range(READ_IMAGES)], [index % 1000 for index in range(READ_IMAGES)]
    commit_shard(root, "a", to_table(KL16, keys, labels, moments[0], moments[1]), KL16, [])
    publish(root, ["a"], KL16, {"tokenizer": {}, "image_size": 256, "classes": [], "source": {}})
    np.save(folder / "moments.npy", moments)
    (folder / "npz").mkdir()
    for index in range(READ_IMAGES):
        np.savez(
            folder / "npz" / f"{index}.npz",
            moments=moments[0, index].astype(np.float32), moments_flip=moments[1, index].astype(np.float32),
        )  # fmt: skip
    store, mapped = LatentStore(root), np.load(folder / "moments.npy", mmap_mode="r")
    flips = np.random.default_rng(1).integers(0, 2, READ_IMAGES)

    def from_npz(indices: np.ndarray) -> np.ndarray:
        names = ("moments", "moments_flip")
        return np.stack([np.load(folder / "npz" / f"{i}.npz")[names[flips[i]]] for i in indices])

    def from_map(indices: np.ndarray) -> np.ndarray:
        return np.stack([mapped[flips[i], i] for i in indices])

    some = np.arange(64)
    assert np.array_equal(store.stored(some, flips[some]), from_map(some))
    ours = items_per_cpu_second(lambda indices: store.stored(indices, flips[indices]), READ_IMAGES)
    npz, plain = (items_per_cpu_second(read, READ_IMAGES) for read in (from_npz, from_map))
    total = sum(path.stat().st_size for path in (folder / "store" / "shards").iterdir())
    return [
        f"| reading against one npz an image, items per CPU-second | {ours / npz:.1f}x | {ours:.0f}, {npz:.0f} |",
        f"| reading against a plain memory map of the same bytes | {ours / plain:.2f}x | {ours:.0f}, {plain:.0f} |",
        f"| bytes an image, over the float16 payload | {total / READ_IMAGES / (2 * KL16.bytes):.4f} "
        f"| {total / READ_IMAGES:.0f}, KL-16 shape, both flips |",
    ]


def job(source: str, classes: int, tokenizer: str, size: int, out: Path, encoders: int) -> dict[str, float]:
    """Tokenize in a process of its own; returns what the job measured and the driver's peak memory in MiB."""
    code = (
        "import json, sys; from benchmarks.latents import run_job\nprint(json.dumps(run_job(*json.loads(sys.argv[1]))))"
    )
    told = json.dumps([source, classes, tokenizer, size, str(out), encoders])
    done = subprocess.run([sys.executable, "-c", code, told], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_job(source: str, classes: int, tokenizer: str, size: int, out: str, encoders: int) -> dict[str, float]:
    """Run the tokenization job in this process, whose peak of resident memory is added to what it measured."""
    quiet_environment()
    import ray

    from tokenize_jobs.job.latents_job import tokenize

    cores = max(os.cpu_count() or 1, encoders + 1)  # two encoders on two cores share them with what reads for them
    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    chosen = tokenizers.parse(tokenizer)
    weights = tokenizers.find(chosen.kind, chosen.path)
    config = Tokenize(image_size=size, batch_size=16)
    measured = tokenize(
        config, weights, scan(source, classes), location(out), Compute(encode=Stage(workers=encoders, cpus=1))
    )
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory before exec
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {**measured, "driver_mib": int(peak.split()[1]) / 1024}


def warm_rate(folder: Path) -> float:
    """Return images a second over the last three quarters of a store's shards: without the start of the workers."""
    commits = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    first, warm = commits[len(commits) // 4], commits[len(commits) // 4 + 1 :]
    images = sum(json.loads(path.read_text())["rows"] for path in warm)
    return images / (warm[-1].stat().st_mtime - first.stat().st_mtime)


def encoding(source: str, classes: int, tokenizer: str, size: int, folder: Path, rounds: int = 3) -> list[str]:
    """Measure how busy the encoders are, and what a second one brings; one and two take turns."""
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for encoders in runs:
            out = folder / f"encoders-{encoders}-{turn}"
            runs[encoders].append(job(source, classes, tokenizer, size, out, encoders))
            rates[encoders].append(warm_rate(out / "commits"))
    what = f"{runs[1][0]['images']} images at {size} px, tokenizer {tokenizer.split(':')[0]}, one core an encoder"
    busy = [f"{statistics.median(run['encoders_busy'] for run in runs[n]):.0%}" for n in runs]
    pairs = ", ".join(f"{two:.2f} against {one:.2f}" for two, one in zip(rates[2], rates[1], strict=True))
    return [
        f"| encoder busy, of the time from its first image to its last | {busy[0]}, of two {busy[1]} | {what} |",
        f"| two encoders against one, once warm | {ratio(rates[2], rates[1]):.2f}x | {pairs} images/s |",
    ]


def driver_memory(folder: Path) -> list[str]:
    """Measure the driver's peak memory on ten times the images."""
    peaks = {}
    for shards in (2, 20):
        source = folder / f"pictures-{shards}"
        synthetic_shards(source, shards, 2500, 16)
        peaks[shards] = job(str(source), 2, "pixels", 16, folder / f"out-{shards}", 1)["driver_mib"]
    return [
        f"| driver's peak memory, 50,000 images against 5,000 | {peaks[20] / peaks[2]:.2f}x "
        f"| {peaks[20]:.0f} MiB against {peaks[2]:.0f} MiB |"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="folder of images to tokenize")
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--tokenizer", default="", help="KIND:PATH")
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args(arguments)
    say(f"{conditions()}\n\n| what | ratio | figures |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reading").mkdir()
        say("\n".join(reading(folder / "reading")))
        images, classes, tokenizer = given.images, given.classes, given.tokenizer
        if not images:
            from tokenize_jobs.tokenizers.small import Shape
            from tokenize_jobs.tokenizers.small_kl import SmallKL

            images, classes = str(folder / "pictures"), 2
            synthetic_shards(Path(images), 30, 40, given.size)
            SmallKL(Shape(stride=4, channels=4, width=64, depth=16)).write(folder / "tokenizer")
            tokenizer = f"fitted:{folder / 'tokenizer'}"
        say("\n".join(encoding(images, classes, tokenizer, given.size, folder)))
        say("\n".join(driver_memory(folder)))


if __name__ == "__main__":
    main()
