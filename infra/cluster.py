"""Where the work runs: the only `ray.init`, and the checks that come before it."""

import logging
import os
import signal
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import where

_CONNECT_SECONDS = 5
# a worker that asked Ray for no GPU would see them all, and torch would take the first
_HIDE_GPUS_NOT_LENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a recipe runs: never part of what it makes."""

    out: str = where(default="output")
    """Root folder of everything that is made. Every node of a cluster must see it."""
    latents: str = where(default="")
    """Root folder or bucket of the latents, to share them more widely; empty takes `out`."""
    address: str = where(default="")
    """Ray cluster to join, host:port or 'auto'; empty takes RAY_ADDRESS, or starts a local cluster."""
    tracking_uri: str = where(default="")
    """MLflow server; empty takes MLFLOW_TRACKING_URI, or a SQLite file below `out`."""
    workers: int = where(default=1)
    """Processes that train, and that generate."""
    gpus_per_worker: float = where(default=0.0)
    """GPUs of each; a fraction shares one GPU between generators and encoders."""
    cpus_per_worker: int = where(default=0)
    """Cores of each; 0 divides the local machine's cores."""
    encoders: int = where(default=1)
    """Processes that encode images."""

    @property
    def cores(self) -> int:
        """Cores of one worker."""
        return self.cpus_per_worker or max(1, (os.cpu_count() or 1) // max(self.workers, 1))


def quiet_environment() -> None:
    """Set what Ray and MLflow read from the environment when they are imported or started."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how often reports are taken: 2 s would slow checkpoints
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the training loop does not ask it; saves a process
        **_HIDE_GPUS_NOT_LENT,
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, not only the sweep
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
    if (Path.home() / ".ray" / "auth_token").exists():  # clusters started here ask for it, the others let it pass
        defaults["RAY_AUTH_MODE"] = "token"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def connected(compute: Compute) -> Iterator[None]:
    """Join or start the cluster for the duration of a block; nested blocks share it.

    Raises InputError when nothing answers at the address or the cluster lacks the GPUs or cores asked for.
    """
    import ray

    if ray.is_initialized():
        _check_resources(compute, ray.cluster_resources())
        yield
        return
    address = compute.address or os.environ.get("RAY_ADDRESS", "")
    if address and address != "auto":
        check_answers(address, "--compute.address / RAY_ADDRESS", "Start Ray there (`ray start --head`), or unset it")
    local_cpus = max(os.cpu_count() or 1, compute.encoders + 1)  # one reads for the encoders
    if not address:  # this machine is known before Ray has started
        _check_resources(compute, {"CPU": local_cpus, "GPU": _local_gpus() if compute.gpus_per_worker else 0})
    options = {"address": address, "runtime_env": {"env_vars": _HIDE_GPUS_NOT_LENT}} if address else {
        "address": "local", "num_cpus": local_cpus, "include_dashboard": False, "object_store_memory": 512 << 20,
    }  # fmt: skip
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--compute.address {address or 'local'}: no Ray cluster could be reached ({reason}). If it asks for a "
            "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from None
    try:
        _check_resources(compute, ray.cluster_resources())
        _quiet_loggers()
        yield
    finally:
        ray.shutdown()


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Put back what Ctrl-C does when a block ends: Ray Train leaves a handler of its own behind, which ignores it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def check_answers(address: str, field: str, remedy: str) -> None:
    """Raise InputError unless something accepts connections at host:port or at a URL, within seconds."""
    parsed = urllib.parse.urlparse(address if "//" in address else f"//{address}")
    try:
        port = parsed.port or {"https": 443, "http": 80, "ray": 10001}.get(parsed.scheme, 6379)
        socket.create_connection((parsed.hostname or "localhost", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"{field} {address}: nothing answers there ({error}). {remedy}.") from None


def _local_gpus() -> int:
    import torch  # seconds to import: only for those who ask for GPUs

    return torch.cuda.device_count()


def _check_resources(compute: Compute, total: Mapping[str, float]) -> None:
    wanted = compute.workers * compute.gpus_per_worker
    if wanted > total.get("GPU", 0):
        raise InputError(
            f"--compute.gpus-per-worker {compute.gpus_per_worker:g} x --compute.workers {compute.workers}: the cluster "
            f"has {total.get('GPU', 0):g} GPUs, not {wanted:g}. Ask for fewer, or 0 to use processors."
        )
    if compute.workers * compute.cores > total.get("CPU", 0):
        raise InputError(
            f"--compute.workers {compute.workers} x {compute.cores} cores: the cluster has "
            f"{total.get('CPU', 0):g} CPUs. Ask for fewer workers, or set --compute.cpus-per-worker."
        )
    if compute.encoders >= total.get("CPU", 0):
        raise InputError(
            f"--compute.encoders {compute.encoders}: each takes a core and reading for them another, but the cluster "
            f"has {total.get('CPU', 0):g} CPUs. Ask for fewer encoders."
        )


def _quiet_loggers() -> None:
    """Leave the console to our own lines; Ray keeps its logs in its session folder."""
    import ray.data  # noqa: F401  sets up its loggers when it is imported: first, so that it is not undone

    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def tracking_uri(compute: Compute, root: UPath) -> str:
    """Return where runs are recorded: the flag, MLFLOW_TRACKING_URI, or a SQLite file below the output root."""
    return compute.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{root}/mlflow.db"


def check_tracking(uri: str) -> None:
    """Raise InputError when `uri` names a server and nothing answers there."""
    if uri.startswith(("http://", "https://")):
        check_answers(
            uri, "--compute.tracking-uri / MLFLOW_TRACKING_URI", "Start it (`mlflow server`), or unset it to use SQLite"
        )
