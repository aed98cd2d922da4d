"""Files that are whole or absent, on local disks and object stores alike.

Paths are `UPath` (universal-pathlib): pathlib's interface over local disk, s3://, gs:// and every other
fsspec filesystem. On a local disk a file appears by rename after fsync; an object store publishes an
upload when it is complete.
"""

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import fsspec.config
from upath import UPath

from infra.errors import InputError

for _protocol in ("s3", "gs"):  # a listing kept from before would hide what other processes have written since
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
_S3 = {
    "default_block_size": 5 << 20,  # an open file holds as much, and many are open: it would be 50 MiB
    "config_kwargs": {"max_pool_connections": 64},  # as many as are read at once: it would be 10
}
for _option, _value in _S3.items():
    fsspec.config.conf["s3"].setdefault(_option, _value)

_CLIENTS = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError"))


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what a failing storage raises: OSError, and the exceptions of those object-store clients in use."""
    used = [(sys.modules[module], name) for module, name in _CLIENTS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in used))


def is_of_storage(error: Exception) -> bool:
    """Tell whether a storage failed, not what it holds: a parser raises plain OSError without a number."""
    numbered = getattr(error, "errno", None) is not None
    return numbered or (isinstance(error, storage_errors()) and type(error) is not OSError)


def location(text: str | Path | UPath) -> UPath:
    """Return the path that `text` names: local ones absolute, since Ray workers have another working directory.

    Raises InputError when the package for the URL's filesystem is not installed.
    """
    try:
        path = UPath(text)
    except (ImportError, ValueError) as error:
        raise InputError(f"{text}: {error}. For s3:// install 's3fs', for gs:// 'gcsfs'.") from None
    return UPath(Path(str(path)).expanduser().absolute()) if is_local(path) else path


def local_root(text: str) -> UPath:
    """Return the folder that --compute.out names. Raises InputError for a bucket, which can hold latents only."""
    root = location(text)
    if not is_local(root):
        raise InputError(
            f"--compute.out {root}: a folder that every node sees is needed; a bucket can hold the latents: "
            "--compute.latents"
        )
    return root


def is_local(path: UPath | Path) -> bool:
    """Tell whether `path` is on a disk of this machine."""
    return getattr(path, "protocol", "") in ("", "file", "local")


def open_without_read_ahead(path: UPath) -> BinaryIO:
    """Open a file of which little is read, in many places: of a remote one, every read would fetch megabytes more."""
    return path.open("rb") if is_local(path) else path.fs.open(path.path, "rb", cache_type="none")


def write_atomic(path: UPath | Path, content: bytes) -> None:
    """Write a file that other processes see complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        path.write_bytes(content)
        return
    name = f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"  # readers of a folder pass over what begins with a dot
    temporary = Path(str(path)).with_name(name)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(Path(path))
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: UPath | Path, value: Any) -> None:  # noqa: ANN401
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: UPath | Path) -> Any:  # noqa: ANN401
    """Read a JSON file."""
    return json.loads(path.read_text())


def require_writable(root: UPath) -> None:
    """Raise InputError unless files can be made below `root`."""
    probe = root / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # noqa: BLE001  an object store raises its own library's exceptions here
        raise InputError(
            f"--compute.out {root}: cannot be written ({error}). Choose a folder or bucket you may write to."
        ) from None
