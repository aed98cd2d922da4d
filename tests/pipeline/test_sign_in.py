"""A real MLflow server that asks who one is, and keeps artifacts itself: recorded and registered there, or refused."""

import os
import signal
from pathlib import Path

import mlflow
import pytest
from mlflow.server.auth.client import AuthServiceClient
from upath import UPath

from infra.errors import InputError
from infra.tracking import Tracker, download_model
from tests.pipeline.registered import registered
from tests.pipeline.test_outage import served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
OWNER, STRANGER, READER = (
    {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    for name, password in (
        ("owner", "secret of the owner"),
        ("owner", "a guess or two"),
        ("reader", "secret of a reader"),
    )
)
VARIABLES = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ROLLBACK, PROMOTE = ("registry", "rollback", "small"), ("registry", "promote", "small", "3")


def as_user(patched, user):
    for name, value in user.items():
        patched.setenv(name, value)


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    """URL and folder of a server with two users: the owner, of three versions, the last to be promoted; and a reader."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    config = {
        "default_permission": "READ", "database_uri": f"sqlite:///{folder}/users.db",
        "admin_username": "owner", "admin_password": OWNER["MLFLOW_TRACKING_PASSWORD"], "auth_cache_ttl_seconds": 600,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }  # fmt: skip
    (folder / "auth.ini").write_text("[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in config.items()))
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test"}
    process, uri = served(folder, port, "--app-name", "basic-auth", **environment), f"http://127.0.0.1:{port}"
    try:
        with pytest.MonkeyPatch.context() as patched:
            as_user(patched, OWNER)
            AuthServiceClient(uri).create_user(*READER.values())
            results = [registered(folder, uri, number, fd=fd) for number, fd in enumerate((50.0, 40.0, 39.9))]
            assert [result.alias for result in results] == ["champion", "champion", "challenger"]
            mlflow.MlflowClient(uri).set_model_version_tag("small", "3", "fd", "30")
        yield uri, folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def contents(uri):
    """All that the server has: its runs, and models with their versions, aliases and tags."""
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([of.experiment_id for of in client.search_experiments()])
    return (
        sorted((run.info.run_id, run.info.status, str(run.data.tags)) for run in runs),
        sorted((of.name, str(of.aliases)) for of in client.search_registered_models()),
        sorted((of.name, str(of.version), str(of.tags)) for of in client.search_model_versions()),
    )


def test_run_is_recorded_and_versions_are_promoted_and_rolled_back(server, tmp_path, mar_here, monkeypatch):
    uri, folder = server
    as_user(monkeypatch, OWNER)
    tracker = Tracker(uri, UPath(tmp_path))
    run = tracker.open("small", "run")
    tracker.json(run, "recipe.json", {"seed": 3})
    tracker.finish(run)
    (kept,) = (folder / "kept").rglob("recipe.json")
    assert Path(tracker.client.download_artifacts(run, "recipe.json", str(tmp_path))).read_text() == kept.read_text()
    for words, version in ((PROMOTE, "3"), (ROLLBACK, "2")):
        done = mar_here(*words, "--compute.tracking-uri", uri, **OWNER)
        assert done.returncode == 0, done.stderr
        assert str(tracker.client.get_model_version_by_alias("small", "champion").version) == version
    assert list(download_model("models:/small@champion", uri, tmp_path / "got").rglob("ema.safetensors"))
    assert not list(folder.glob("mlartifacts"))
    listed = mar_here("registry", "list", "--compute.tracking-uri", uri, **READER)
    assert "@champion" in listed.stdout, listed.stderr


@pytest.mark.parametrize(
    ("user", "commands"),
    [
        (STRANGER, [ROLLBACK, PROMOTE, ("registry", "list"), ("sample", "models:/small@champion")]),
        (READER, [ROLLBACK, PROMOTE]),
    ],
    ids=["wrong-password", "reader"],
)
def test_who_may_not_changes_nothing_and_is_told_by_which_server_and_why(
    server, user, commands, tmp_path, mar_here, monkeypatch
):
    uri, _ = server
    as_user(monkeypatch, OWNER)
    before = contents(uri)
    as_user(monkeypatch, user)
    with pytest.raises(InputError, match=f"{uri}: .*{VARIABLES}"):
        registered(tmp_path, uri, 4, fd=4.0)
    for words in commands:
        refused = mar_here(*words, "--compute.tracking-uri", uri, "--compute.out", str(tmp_path / "out"), **user)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert uri in line
        assert VARIABLES in line
    as_user(monkeypatch, OWNER)
    assert contents(uri) == before
