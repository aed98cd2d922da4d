"""Files of named arrays: whole, or told from whole ones, since each array in a .npz has a checksum."""

import errno
import io
from collections.abc import Iterable, Mapping

import numpy as np
from upath import UPath

UNREADABLE = (OSError, ValueError, KeyError)
"""What reading raises: what the storage says, or that something is wrong with the file."""


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a file that holds these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_arrays(path: UPath, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of a file, or those of these names; nothing is unpickled.

    Raises one of UNREADABLE when it is not there, or not whole.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return {name: saved[name] for name in names or saved}
    except Exception as error:  # zipfile, zlib and numpy raise anything on damaged bytes
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        raise ValueError(f"not a whole file of arrays ({type(error).__name__}: {error})"[:300]) from None
