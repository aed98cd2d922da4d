"""A registered model as others use it: through MLflow alone, in their process and through `mlflow models serve`."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.pipeline.registered import registered
from tests.pipeline.tiny import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    assert registered(folder, uri).alias == "champion"
    return uri


@pytest.fixture(scope="module")
def model(store):
    mlflow.set_tracking_uri(store)
    return mlflow.pyfunc.load_model("models:/small@champion")


def test_images_follow_class_seed_and_settings(model):
    ids = pd.DataFrame({"class_id": [0, 1, 4]})
    images = model.predict(ids)
    assert (images.shape, images.dtype) == ((3, 4, 4, 3), np.uint8)
    assert np.array_equal(images, model.predict(ids, params={"seed": 0, "cfg_scale": 1.5, "ar_steps": 2}))
    for params in ({"seed": 1}, {"cfg_scale": 9.0}, {"ar_steps": 4}, {"diffusion_steps": 9}, {"temperature": 0.5}):
        assert not np.array_equal(images, model.predict(ids, params=params)), params


def test_settings_of_a_row_are_those_of_a_call(model):
    calls = [{"cfg_scale": 4.0}, {"ar_steps": 1}, {"temperature": 0.0}, {}]
    rows = pd.DataFrame([{"class_id": 2, "seed": 7, **settings} for settings in calls])
    together = model.predict(rows)
    for image, settings in zip(together, calls, strict=True):
        alone = model.predict(pd.DataFrame({"class_id": [2]}), params={"seed": 7, **settings})
        assert np.abs(image.astype(int) - alone[0]).max() <= 1  # the batch's size moves the last bits


def test_row_with_a_seed_is_the_same_image_beside_any_others(model):
    rng = np.random.default_rng(0)
    rows = [{"class_id": int(rng.integers(5)), "seed": int(rng.integers(3))} for _ in range(12)]
    together = model.predict(pd.DataFrame(rows))
    for place in rng.permutation(12)[:4]:
        alone = model.predict(pd.DataFrame([rows[place]]))[0]
        assert np.abs(together[place].astype(int) - alone).max() <= 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"class_id": -1}, "row 1, class_id: is -1; this model has the classes 0 to 4"),
        ({"class_id": 5}, "classes 0 to 4"),
        ({"class_id": 1.5}, "whole numbers"),
        ({"class_id": None}, "class_id: is missing"),
        ({"class_id": "cat"}, "row 1, class_id: is 'cat'"),
        ({"class_id": True}, "whole numbers"),
        ({"class_id": float("inf")}, "whole numbers"),
        ({"class_id": 1, "cfgscale": 2.0}, "unknown column 'cfgscale'. Did you mean 'cfg_scale'?"),
        ({"class_id": 1, "cfg_scale": "high"}, "row 1, cfg_scale: is 'high'"),
        ({"class_id": 1, "temperature": -1.0}, "row 1, temperature: is -1.0"),
        ({"class_id": 1, "ar_steps": 2.5}, "row 1, ar_steps: is 2.5; it must be a whole number"),
        ({"class_id": 1, "ar_steps": 99}, "row 1: ar_steps is 99"),
        ({"class_id": 1, "seed": -3}, "row 1, seed: is -3"),
    ],
)
def test_bad_row_of_a_batch_is_refused_by_name(model, row, told):
    batch = pd.DataFrame([{"class_id": 0}, row, {"class_id": 1}])
    with pytest.raises(MlflowException, match=r"row 1|unknown column") as refused:
        model.predict(batch)
    assert told in str(refused.value)
    assert refused.value.get_http_status_code() == 400


def test_input_without_class_ids_and_an_unknown_format_are_refused(model):
    with pytest.raises(MlflowException, match="no column class_id"):
        model.predict(pd.DataFrame({"seed": [1]}))
    with pytest.raises(MlflowException, match="must be 'array' or 'png'"):
        model.predict(pd.DataFrame({"class_id": [1]}), params={"image_format": "jpeg"})


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def served(store, free_port):
    """The address of `mlflow models serve` of the champion."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/small@champion", "--env-manager", "local",
               "-h", "127.0.0.1", "-p", str(port), "-w", "1"]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": store}
    server = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers():
        assert server.poll() is None, "the server ended"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200
        except OSError:
            return False

    try:
        wait_until(answers, 120, "the server's start")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_served_model_answers_arrays_and_png_files_and_refuses_by_name(served, model):
    records = [{"class_id": 3}, {"class_id": 1, "cfg_scale": 4.0}]
    expected = model.predict(pd.DataFrame(records), params={"seed": 5})
    status, answer = post(served, {"dataframe_records": records, "params": {"seed": 5}})
    assert status == 200
    assert np.array_equal(answer["predictions"], expected)
    for body in ({"dataframe_records": records}, {"inputs": records}):
        status, answer = post(served, {**body, "params": {"seed": 5, "image_format": "png"}})
        assert status == 200, answer
        assert np.array_equal([decoded(text) for text in answer["predictions"]], expected)
    for bad, told in ({"class_id": 5}, "classes 0 to 4"), ({"class_id": 0, "cfg": 2}, "unknown column 'cfg'"):
        status, answer = post(served, {"dataframe_records": [*records, bad]})
        assert status == 400
        assert told in answer
