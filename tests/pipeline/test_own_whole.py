"""A person's own pictures from a folder to a registered model, by the one command that the README names."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.target import recipe_at
from tests.pipeline.conftest import ENVIRONMENT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = ("tokenizer", "latents", "reference", "checkpoint", "sweep", "evaluation", "registration")
CLASSES = {"blue hour": (20, 40, 160), "été": (220, 180, 40)}
TINY = """
    --budget minutes --tokenizer.train-steps 20 --tokenizer.width 16
    --train.model.trunk.width 32 --train.model.trunk.depth 2 --train.model.head.width 32
    --train.train-steps 12 --train.batch-size 16 --train.checkpoint-every 4 --train.log-every 2
    --evaluate.generate.images 24 --evaluate.generate.sampling.diffusion-steps.first 5
    --evaluate.generate.sampling.diffusion-steps.last 5 --tune.images 16 --tune.widen 0
""".split()


def save_pictures(root, *, labelled):
    """Write 30 noisy pictures of each class's colour, in a folder a class or all in one."""
    random = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        folder = root / name if labelled else root
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(30):
            pixels = random.normal(colour, 20, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{colour[0]}-{index}.JPG", "JPEG")


@pytest.mark.parametrize(
    ("labelled", "classes", "axis"),
    [
        pytest.param(True, tuple(CLASSES), "cfg_scale", id="class folders"),
        pytest.param(False, ("image",), "temperature", id="one folder", marks=pytest.mark.chaos),  # slow, not violent
    ],
)
def test_pictures_of_ones_own_become_a_registered_model_whose_report_names_their_classes(
    labelled, classes, axis, mar, head, tmp_path
):
    import mlflow

    save_pictures(tmp_path / "pictures", labelled=labelled)
    out = tmp_path / "out"
    words = ["images-32", "--images.path", str(tmp_path / "pictures"), *TINY, "--compute.out", str(out)]
    done = mar("run", *words, timeout=500, RAY_ADDRESS=head[0], **ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"60 pictures, {len(classes)} classes" in done.stdout

    records = {path.parents[2].name: path for path in (out / "artifacts").rglob("artifact.json")}
    assert set(records) == set(STEPS)
    results = {step: json.loads(path.read_text())["result"] for step, path in records.items()}
    assert tuple(json.loads((records["checkpoint"].parent / "model.json").read_text())["classes"]) == classes
    report = (records["evaluation"].parent / "report.html").read_text()
    assert all(f"<br>{name}<" in report for name in classes)
    assert len({trial["sampling"][axis] for trial in results["sweep"]["trials"]}) == 3
    assert recipe_at(str(records["evaluation"])).train.model.label_drop == (0.1 if labelled else 0)

    version = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db").get_model_version_by_alias("mar-images-32", "champion")
    assert float(version.tags["fd"]) == results["evaluation"]["numbers"]["fd"]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = mar("run", *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("cached (") == len(STEPS)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
