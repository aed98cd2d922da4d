"""Where the work runs: the only `ray.init`, and the checks that come before it."""

import contextlib
import logging
import os
import signal
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import where
from infra.stages import ElasticStage, Stage, Workers, workers_of

_CONNECT_SECONDS = 5
_SMALL_MEMORY, _SMALL_STORE = 16 << 30, 512 << 20
_MANY = 1000  # nodes of a group without a limit
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
    encode: Stage = where(default_factory=lambda: Stage(cpus=1))
    """Processes that encode images; others read for them."""
    train: ElasticStage = where(default_factory=ElasticStage)
    """Processes that train; one of them fits the tokenizer."""
    generate: Stage = where(default_factory=Stage)
    """Processes that draw and measure images."""


@dataclass(frozen=True)
class Cluster:
    """What each stage takes of the cluster that is connected."""

    encode: Workers
    train: Workers
    generate: Workers


def quiet_environment() -> None:
    """Set what Ray and MLflow read from the environment when they are imported or started."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how often reports are taken: 2 s would slow checkpoints
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # train/trainer.py: on where a cluster is joined
        **_HIDE_GPUS_NOT_LENT,
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, not only the sweep
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of each step and trial; the links come at the end
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
    if (Path.home() / ".ray" / "auth_token").exists():  # clusters started here ask for it, the others let it pass
        defaults["RAY_AUTH_MODE"] = "token"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def connected(compute: Compute) -> Iterator[Cluster]:
    """Join or start the cluster for a block, yielding what each stage takes of it; nested blocks share it.

    Raises InputError when nothing answers at the address or the cluster lacks the GPUs or cores asked for.
    """
    import ray

    if ray.is_initialized():
        yield _cluster(compute)
        return
    address = compute.address or os.environ.get("RAY_ADDRESS", "")
    if address and address != "auto":
        check_answers(address, "--compute.address / RAY_ADDRESS", "Start Ray there (`ray start --head`), or unset it")
    options: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": _HIDE_GPUS_NOT_LENT}} if address else {
        "address": "local", "include_dashboard": False, "object_store_memory": _object_store(),
        "num_cpus": max(usable_cores(), 2),  # one encodes, one reads
    }  # fmt: skip
    try:
        with contextlib.nullcontext() if address else _known_to_its_processes():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--compute.address {address or 'local'}: no Ray cluster could be reached ({reason}). If it asks for a "
            "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from None
    try:
        cluster = _cluster(compute)
        _quiet_loggers()
        yield cluster
    finally:
        ray.shutdown()


@contextmanager
def _known_to_its_processes() -> Iterator[None]:
    """Let the cluster that is started in the block be the one that its processes take for theirs.

    Ray Train asks the cluster that it finds on the machine whether a training's controller is dead, and then frees its
    cores: beside another cluster it may ask the wrong one, and free those of a living one.
    """
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    given = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)  # its processes inherit them
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def usable_cores() -> int:
    """Return how many cores this process may use: those of its affinity, and of its container's limit."""
    from ray._private.utils import get_num_cpus

    return max(1, min(len(os.sched_getaffinity(0)), int(get_num_cpus(override_docker_cpu_warning=True))))


def _object_store() -> int | None:
    """Return the bytes of a local cluster's object store: 512 MiB on a small machine, else Ray's own rule (None).

    Ray takes 30 % of the memory the process may use, at most what /dev/shm holds.
    """
    from ray._common.utils import get_system_memory

    return _SMALL_STORE if get_system_memory() < _SMALL_MEMORY else None


def _addable() -> list[dict[str, float]] | None:
    """Return the nodes that an autoscaler may add; None when there is one that does not tell which."""
    import json

    from ray._private.state import state  # where Ray Data and Ray Train look too
    from ray.experimental.internal_kv import _internal_kv_get

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [
            dict(group.resources)
            for group in config.node_group_configs
            for _ in range(_MANY if group.max_count < 0 else group.max_count)
        ]
    status = _internal_kv_get("__autoscaling_status")
    report = json.loads(status).get("autoscaler_report") if status else None  # a cluster just begun has none yet
    types = report["active_nodes"] if report else {}
    # where nothing can be added, each node is a type of its own, called after its id
    return [] if all(name.startswith("node_") for name in types) else None


def _cluster(compute: Compute) -> Cluster:
    """Return what each stage takes of the connected cluster. Raises InputError when it cannot hold it."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found, addable = {}, _addable()
    for name, beside in (("encode", 1), ("train", 0), ("generate", 0)):
        found[name] = workers_of(getattr(compute, name), nodes, beside)
        check_held(name, found[name], nodes, addable, beside)
    return Cluster(**found)


def check_held(
    name: str,
    workers: Workers,
    nodes: Sequence[Mapping[str, float]],
    addable: Sequence[Mapping[str, float]] | None = (),
    beside: int = 0,
) -> None:
    """Raise InputError unless the nodes can hold all these workers of the stage `name`, and `beside` cores more.

    `addable` are the nodes that an autoscaler may add, None if it may add any.
    """
    flags = f"--compute.{name}.workers {workers.count} x {workers.cpus} cores and {workers.gpus:g} GPUs"
    if workers.count < 1 or workers.cpus < 1 or workers.gpus < 0 or (workers.gpus > 1 and workers.gpus % 1):
        raise InputError(f"{flags}: ask for positive numbers, and for a part of one GPU or for whole GPUs")
    if addable is None:
        return
    has_now, nodes = len(nodes), [*nodes, *addable]
    cores, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    grown = f" and the {len(addable)} that may be added" if addable else ""
    has = f"the cluster has {cores:g} cores and {gpus:g} GPUs on {has_now} nodes{grown}"
    held = workers.held_by(nodes)
    if held < workers.count:
        raise InputError(
            f"{flags}: {has}, which hold {held} such workers. Ask for fewer, for fewer cores with "
            f"--compute.{name}.cpus, or for no GPU with --compute.{name}.gpus 0."
        )
    if workers.count * workers.cpus + beside > cores:
        raise InputError(f"{flags}: reading for them takes a core more, but {has}. Ask for fewer workers.")


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Put back what Ctrl-C does when a block ends: Ray Train leaves a handler of its own behind, which ignores it."""
    handler, is_main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    try:
        yield
    finally:
        if is_main:  # of others Python sets no handlers
            signal.signal(signal.SIGINT, handler)


def check_answers(address: str, field: str, remedy: str) -> None:
    """Raise InputError unless something accepts connections at host:port or at a URL, within seconds."""
    parsed = urllib.parse.urlparse(address if "//" in address else f"//{address}")
    try:
        port = parsed.port or {"https": 443, "http": 80, "ray": 10001}.get(parsed.scheme, 6379)
        socket.create_connection((parsed.hostname or "localhost", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"{field} {address}: nothing answers there ({error}). {remedy}.") from None


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


def recorded_at(compute: Compute, root: UPath) -> str:
    """Return where runs were recorded. Raises InputError for a SQLite file that there is not."""
    uri = tracking_uri(compute, root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(f"{uri}: no runs are recorded there yet; give --compute.out, or `mar run` a recipe first")
    return uri


def check_tracking(uri: str) -> None:
    """Raise InputError when `uri` names a server and nothing answers there."""
    if uri.startswith(("http://", "https://")):
        check_answers(
            uri, "--compute.tracking-uri / MLFLOW_TRACKING_URI", "Start it (`mlflow server`), or unset it to use SQLite"
        )
