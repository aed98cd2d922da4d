"""Small sources of real images for tests: shards of noise, each with a broken image among them."""

import numpy as np
from PIL import Image

from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.sources.listing import scan

COUNTS = (5, 3, 2)


def write_shards(folder, counts=COUNTS, seed=0):
    """Write one tar a count and return their listing."""
    folder.mkdir(parents=True)
    for shard, count in enumerate(counts):
        pictures = np.random.default_rng([seed, shard]).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
        samples = [(f"{shard}{i}.{s}", c) for i, picture in enumerate(pictures)
                   for s, c in (("png", encoded(Image.fromarray(picture))), ("cls", b"0"))]  # fmt: skip
        write_tar(folder / f"{shard}.tar", [*samples, (f"{shard}bad.png", b"broken"), (f"{shard}bad.cls", b"0")])
    return scan(str(folder), 1)
