"""Named random streams: every draw in the project comes from a key such as ("image", seed, index).

A stream depends on its key alone, so results do not depend on batch sizes, workers or neighbours.
Philox takes a 128-bit key; torch's CPU generator keeps only 32 bits of a seed, too few for 50,000 images.
"""

import hashlib

import numpy as np


def stream(name: str, *key: int) -> np.random.Generator:
    """Return the random stream of this key."""
    text = "/".join([name, *map(str, key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
