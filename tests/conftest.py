"""Fast tests first; one Ray cluster for all that need one."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest import mock

import pytest

from infra.cluster import quiet_environment

quiet_environment()
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
REPOSITORY = Path(__file__).parents[1]
STORE = {name: value for name, value in os.environ.items() if name == "MLFLOW_TRACKING_URI"}


def pytest_collection_modifyitems(items):
    """Run unit tests, then those on a cluster, then whole recipes, whatever order pytest-randomly chose."""
    items.sort(key=lambda item: ("ray" in item.keywords) + 2 * bool({"e2e", "chaos"} & set(item.keywords)))


@pytest.fixture(autouse=True)
def store_of_each_test():
    """Take back what `mlflow.set_tracking_uri` left in the environment: a later test's commands would go there."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(STORE)


@pytest.fixture(scope="session")
def cluster():
    """A local Ray cluster that every connected() block of the test process joins."""
    from infra.cluster import Compute, connected

    with connected(Compute()):
        yield


@pytest.fixture(scope="session")
def no_cluster():
    """Stop the tests' own cluster, which has done its part: two on one host slow each other down."""
    import ray

    ray.shutdown()


@contextlib.contextmanager
def environment_of_a_newcomer(more: dict[str, str]):
    """Hide the variables that MLflow and Ray leave behind in a process that used them; add `more`."""
    with mock.patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ.update(more)
        yield


@pytest.fixture(scope="session")
def mar(no_cluster):
    """Run the command line in a process of its own; returns the finished process with its output."""

    def run(*words: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess:
        with environment_of_a_newcomer(environment):
            return subprocess.run(
                [sys.executable, "-m", "pipeline", *words],
                cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout,
            )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def mar_here():
    """Run a command line that starts no cluster in this process, which has everything imported; returns what `mar` does."""
    from pipeline.cli import main

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
        output, errors = io.StringIO(), io.StringIO()
        with (
            environment_of_a_newcomer(environment),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            code = main(words)
        return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())

    return run


@pytest.fixture(scope="session")
def free_port():
    """Return a function that names a port nothing listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture
def python_without(tmp_path):
    """Return a function that runs Python where the packages whose names begin with some words are not installed."""

    def run(packages: tuple[str, ...], *words: str) -> subprocess.CompletedProcess:
        left_out = set()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if found := [name for name in packages if path.name.lower().startswith(name)]:
                left_out.update(found)
            elif path.suffix != ".pth":
                (tmp_path / path.name).symlink_to(path)
        assert left_out == set(packages)
        return subprocess.run(
            [sys.executable, "-S", *words], cwd=REPOSITORY, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        )  # fmt: skip

    return run
