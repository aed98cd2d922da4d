"""MLflow: quick about a server that is away, patient with a model on its way."""

import contextlib
import http.server
import multiprocessing
import threading

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from upath import UPath

from infra.errors import InputError
from infra.tracking import Tracker, answering, unhurried


@contextlib.contextmanager
def answers(code, seconds=0.0):
    """A server that answers each upload with this code, so long after it has it; yields its URL."""
    never = threading.Event()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            never.wait(seconds)
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/artifacts"
    server.shutdown()


@pytest.mark.parametrize(("code", "told"), [(403, "MLFLOW_TRACKING_USERNAME"), (413, "413 Client Error")])
def test_upload_that_is_refused_is_one_line_that_names_the_server(code, told, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with (
        answers(code) as uri,
        pytest.raises(InputError, match=f"--compute.tracking-uri {uri}: .*{told}"),
        answering(uri),
    ):
        HttpArtifactRepository(uri).log_artifact(str(tmp_path / "model.safetensors"))


def test_upload_may_take_longer_than_other_requests(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with answers(200, seconds=3) as uri:  # as one that stores what it gets elsewhere
        store = HttpArtifactRepository(uri)
        with unhurried():
            store.log_artifact(str(tmp_path / "model.safetensors"))
        with pytest.raises(MlflowException, match=r"timeout|timed out"):
            store.log_artifact(str(tmp_path / "model.safetensors"))


def opened(folder, barrier, experiments):
    barrier.wait(60)
    experiments.put(Tracker(f"sqlite:///{folder}/new/mlflow.db", UPath(folder)).experiment)


def test_store_that_several_jobs_open_first_at_once_is_made_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, experiments = context.Barrier(4), context.Queue()
    jobs = [context.Process(target=opened, args=(tmp_path, barrier, experiments)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert len({experiments.get(timeout=10) for _ in jobs}) == 1
