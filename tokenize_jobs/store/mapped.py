"""A file as an array, without a descriptor: a store has thousands of shards, and a process often 1,024 descriptors."""

from pathlib import Path

import numpy as np
from upath import UPath


def mapped(path: UPath | Path, *, shared: bool = False) -> np.ndarray:
    """Return a local file's bytes (N,) as they lie in memory; of a `shared` one, what others write later is seen.

    NumPy's and Python's own maps each keep a descriptor open as long as they live.
    """
    import torch  # seconds to import, and its maps keep none

    size = path.stat().st_size
    found = torch.from_file(str(path), shared=shared, size=size, dtype=torch.uint8).numpy()
    found.flags.writeable = False
    return found
