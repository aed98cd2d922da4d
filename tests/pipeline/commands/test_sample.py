"""Images drawn from a registered model: with its own weights, tokenizer and settings."""

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.generate import Generator
from infra.fingerprint import canonical
from infra.storage import write_json
from tests.small_model import randomised, small
from tokenize_jobs.config import TokenizerFile
from train.card import ModelCard
from train.checkpoint import write_model

pytestmark = pytest.mark.e2e
SAMPLING = Sampling(ar_steps=4, diffusion_steps=DiffusionSteps(first=3, last=3), temperature=0.7)


class Nothing(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input


@pytest.fixture
def registered(tmp_path):
    """A store with a registered model, and the package inside it."""
    config, package = small(), tmp_path / "package"
    card = ModelCard(
        model=config, latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    write_model(package, card, randomised(config).state_dict(), randomised(config).state_dict())
    write_json(
        package / "sampling.json", {"sampling": canonical(SAMPLING), "tokenizer": {"kind": "pixels", "file": ""}}
    )
    out = tmp_path / "out"
    out.mkdir()
    mlflow.set_tracking_uri(f"sqlite:///{out}/mlflow.db")
    experiment = mlflow.create_experiment("x", artifact_location=str(out / "mlartifacts"))
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(
            name="sampler", python_model=Nothing(), artifacts={"package": str(package)}, pip_requirements=["torch"]
        )
    version = mlflow.register_model(logged.model_uri, "mar-small").version
    mlflow.MlflowClient().set_registered_model_alias("mar-small", "champion", version)
    return out, package


def test_registered_model_is_sampled_with_its_own_settings(registered, mar_here, tmp_path):
    out, package = registered
    words = (
        "--classes",
        "1",
        "3",
        "--per-class",
        "2",
        "--seed",
        "5",
        "--to",
        str(tmp_path / "s"),
        "--compute.out",
        str(out),
    )
    done = mar_here("sample", "models:/mar-small@champion", *words)
    assert done.returncode == 0, done.stderr
    expected = Generator(str(package), TokenizerFile("pixels")).draw(torch.tensor([1, 1, 3, 3]), range(4), 5, SAMPLING)
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "s").glob("0*.png"))]
    np.testing.assert_array_equal(np.stack(drawn), expected)
    other = mar_here("sample", "models:/mar-small@champion", *words, "--sampling.ar-steps", "17")
    assert "from 1 to the 16 tokens" in other.stderr


def test_model_that_is_not_registered_is_named(registered, mar_here):
    out, _ = registered
    done = mar_here("sample", "models:/other@champion", "--compute.out", str(out))
    assert done.returncode == 2
    assert "models:/other@champion: no such registered model" in done.stderr
