"""MLflow: quick about a server that is away, patient with a model on its way."""

import http.server
import threading

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from infra.tracking import unhurried


@pytest.fixture
def slow_server():
    """Answers an upload three seconds after it has it, as one that stores what it gets elsewhere; yields its URL."""
    never = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            never.wait(3)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/artifacts"
    server.shutdown()


def test_upload_may_take_longer_than_other_requests(slow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    store = HttpArtifactRepository(slow_server)
    with unhurried():
        store.log_artifact(str(tmp_path / "model.safetensors"))
    with pytest.raises(MlflowException, match=r"timeout|timed out"):
        store.log_artifact(str(tmp_path / "model.safetensors"))
