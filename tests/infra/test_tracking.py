"""MLflow: quick about a server that is away, patient with a model on its way."""

import contextlib
import http.server
import threading

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from infra.errors import InputError
from infra.tracking import answering, unhurried


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
