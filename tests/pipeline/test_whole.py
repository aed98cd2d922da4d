"""The whole pipeline, submitted to a real Ray cluster as a job, then everything that can be done with what it made."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from upath import UPath

from evaluate.config import Sampling
from infra.follow import logged
from infra.from_json import from_json
from tests.pipeline.conftest import ENVIRONMENT
from tests.pipeline.tiny import REPOSITORY, TINY, is_served, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = ("pictures", "tokenizer", "latents", "reference", "checkpoint", "sweep", "evaluation", "registration")


def record(out, step):
    return json.loads(next((out / "artifacts" / step).rglob("artifact.json")).read_text())


def test_submitted_job_logs_every_stage_and_the_conditions_of_its_numbers(made):
    _, log = made
    for stage in STEPS:
        assert f"{stage} |" in log
    assert "FD (efficientnet-lite0, 24)" in log
    assert "CC BY-SA 4.0" in log
    assert "FID" not in log


def test_second_run_does_no_work(made, mar):
    out, _ = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = mar("run", "emoji-32", *TINY, "--compute.out", str(out))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("cached (") == 8
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_status_explains_what_an_override_makes_stale(made, mar_here):
    out, _ = made
    told = mar_here("status", "emoji-32", *TINY, "--train.lr", "0.5", "--compute.out", str(out)).stdout
    assert [line.split()[1] for line in told.splitlines()[2:10]] == ["cached"] * 4 + ["stale"] * 4
    assert "checkpoint: config.lr: 0.002 -> 0.5" in told


def test_artifact_holds_the_recipe_that_made_it_and_it_runs(made, mar_here):
    out, _ = made
    records = sorted((out / "artifacts").rglob("artifact.json"))
    assert {path.parents[2].name for path in records} == set(STEPS)
    for path in records:
        told = mar_here("status", str(path), "--compute.out", str(out)).stdout
        assert [line.split()[1] for line in told.splitlines()[2:10]] == ["cached"] * 8, path


def test_latents_are_described_and_verified(made, mar_here):
    out, _ = made
    store = next((out / "artifacts" / "latents").rglob("manifest.json")).parent
    told = mar_here("latents", str(store), "--verify")
    assert told.returncode == 0, told.stderr
    assert "latent_scale" in told.stdout
    assert "shards are as the manifest says" in told.stdout


def test_sample_draws_the_classes_asked_for_and_the_same_images_again(made, mar_here, tmp_path):
    out, _ = made
    for folder, count in (("a", "3"), ("b", "3")):
        words = ["--classes", "1", "0", "--per-class", count, "--to", str(tmp_path / folder), "--compute.out", str(out)]
        record = next((out / "artifacts" / "checkpoint").rglob("artifact.json"))
        done = mar_here("sample", str(record), *words)
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [*(f"{i:06d}-class{c}.png" for i, c in enumerate([1, 1, 1, 0, 0, 0])), "grid.png"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_mlflow_holds_parent_steps_trials_pictures_dataset_and_the_model(made, tmp_path):
    import mlflow
    import numpy as np
    import pandas as pd

    out, _ = made
    mlflow.set_tracking_uri(f"sqlite:///{out}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mar-pipeline").experiment_id
    runs = client.search_runs([experiment], max_results=100)
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    steps = {
        run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id
    }
    assert set(steps) > set(STEPS)
    assert all({"mar.path", "mar.commit"} <= set(steps[name].data.tags) for name in STEPS)
    trials = [steps.pop(name) for name in set(steps) - set(STEPS)]
    assert {trial.data.tags["mar.trial"] for trial in trials} == {"yes"}
    assert len(trials) == 2
    assert all(run.data.metrics["fd"] > 0 for run in [parents[0], steps["evaluation"], *trials])
    losses = client.get_metric_history(steps["checkpoint"].info.run_id, "train/loss")
    assert {point.step for point in losses} >= {2, 4, 6, 8, 10, 12}
    assert parents[0].inputs.dataset_inputs[0].dataset.name == "latents-fit-32"
    assert any(
        f.path.startswith("images/samples~grid") for f in client.list_artifacts(parents[0].info.run_id, "images")
    )
    params = parents[0].data.params
    assert (params["recipe"], params["train.train_steps"], params["train.model.head.width"]) == ("emoji-32", "12", "32")
    assert len(params) < 40
    saved = client.download_artifacts(parents[0].info.run_id, "recipe.json", str(tmp_path))
    assert json.loads(Path(saved).read_text())["train"]["train_steps"] == 12
    assert len(losses) == len({point.step for point in losses})

    version = client.get_model_version_by_alias("mar-emoji-32", "champion")
    assert version.tags["metric"] == "FD (efficientnet-lite0, 24)"
    measured, swept = (record(out, step)["result"] for step in ("evaluation", "sweep"))
    registered = (json.loads(version.tags["sampling"]), measured["sampling"], swept["best"])
    assert len({from_json(json.dumps(tree), Sampling, "sampling") for tree in registered}) == 1
    assert float(version.tags["fd"]) == measured["numbers"]["fd"]
    model = mlflow.pyfunc.load_model("models:/mar-emoji-32@champion")
    images = model.predict(pd.DataFrame({"class_id": [0, 1, 1]}), params={"seed": 3, "ar_steps": 4})
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == np.uint8
    assert not np.array_equal(images[1], images[2])
    assert not list((out / "mlartifacts").rglob("*.pkl"))


def test_wider_sweep_of_the_same_checkpoint_is_registered_as_a_version_of_its_own(made, mar_on_head, tmp_path):
    import mlflow

    out, _ = made
    shutil.copytree(out, tmp_path / "out")
    database = tmp_path / "out" / "mlflow.db"
    words = ["emoji-32", *TINY, "--tune.cfg-scale", "1.0", "6.0", "--compute.out", str(tmp_path / "out")]
    done = mar_on_head("run", *words, "--compute.tracking-uri", f"sqlite:///{database}")
    assert done.returncode == 0, done.stderr
    assert "checkpoint | cached" in done.stdout
    versions = mlflow.MlflowClient(f"sqlite:///{database}").search_model_versions("name = 'mar-emoji-32'")
    assert len({v.tags["mar.checkpoint"] for v in versions}) == 1
    assert len(versions) == len({v.tags["mar.evaluation"] for v in versions}) == 2


def copy_latents(source, target):
    for step in ("pictures", "tokenizer", "latents"):
        shutil.copytree(source / "artifacts" / step, target / "artifacts" / step)


def test_training_killed_and_run_again_ends_with_the_same_bytes(head, made, mar_on_head, tmp_path):
    """The fitted tokenizer's path is not part of any identity, so copied latents are taken as they are."""
    out, _ = made
    copy_latents(out, tmp_path)
    words = ["train", "emoji-32", *TINY, "--compute.out", str(tmp_path), "--compute.address", head[0]]
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], cwd=REPOSITORY, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(
            lambda: list(tmp_path.rglob("step_00000004")) or driver.poll() is not None, 150, "the first checkpoint"
        )
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not list((tmp_path / "artifacts" / "checkpoint").rglob("artifact.json"))
    done = mar_on_head(*words)
    assert done.returncode == 0, done.stderr
    assert "latents | cached" in done.stdout
    for name in ("model.safetensors", "ema.safetensors"):
        straight, resumed = (next((root / "artifacts" / "checkpoint").rglob(name)) for root in (out, tmp_path))
        assert straight.read_bytes() == resumed.read_bytes(), name
    steps = [line["step"] for line in logged(next(tmp_path.rglob("metrics.jsonl")))]
    assert steps == sorted(set(steps)) == [2, 4, 6, 8, 10, 12]


@pytest.mark.chaos  # two minutes: slow, not violent
def test_trainings_run_side_by_side_on_the_cores_for_two_and_each_ends_with_a_record(made, mar_on_head, tmp_path):
    out, _ = made
    copy_latents(out, tmp_path)
    shutil.copytree(out / "artifacts" / "reference", tmp_path / "artifacts" / "reference")
    model = TINY[: TINY.index("--tune.temperature")]
    words = ["emoji-32", "--sweep", "head", *model, "--tune.width", "16", "24", "--tune.reduction", "0"]
    more = ["--tune.images", "24", "--compute.train.cpus", "1", "--compute.out", str(tmp_path)]
    done = mar_on_head("tune", *words, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trainings, 2 side by side" in done.stdout
    result = record(tmp_path, "sweep")["result"]
    assert sorted(trial["fields"]["train.model.head.width"] for trial in result["trials"]) == ["16", "24"]
    assert {step for trial in result["trials"] for step, _ in trial["curve"]} == {4, 8, 12}
    assert set(result["figures"]) == {"losses", "parameters", "speed"}


def opened(playwright, browser):
    """Return a page of a browser that asks nobody but our server, with MLflow's hints closed."""
    flags = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()
    )
    page = playwright.chromium.launch(executable_path=browser, args=flags).new_page(
        viewport={"width": 1700, "height": 1900}
    )
    page.add_init_script(
        """localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
        localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
        localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"""
    )
    return page


def test_ui_shows_numbers_and_grid_in_a_browser(made, tmp_path, free_port):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser installed: apt-get install chromium to run this test")
    from playwright.sync_api import TimeoutError as NotSeen
    from playwright.sync_api import sync_playwright

    out, _ = made
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "ui", "--port", str(port), "--compute.out", str(out)], cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_TRACKING_URI": ""},  # another test's set_tracking_uri leaves its own there
    )  # fmt: skip
    base = f"http://127.0.0.1:{port}"

    try:
        wait_until(lambda: is_served(f"{base}/health"), 120, "the UI's start")
        from infra.tracking import Tracker
        from pipeline.links import links

        tracker = Tracker(f"sqlite:///{out}/mlflow.db", UPath(out))
        pages = dict(links(tracker, tracker.newest(), port=port))
        with sync_playwright() as playwright:
            page = opened(playwright, browser)

            def photographed(name, *texts):
                page.goto(pages[name], wait_until="domcontentloaded")
                for left in reversed(range(4)):
                    try:
                        wait_for(texts, 45_000)
                        break
                    except NotSeen:  # the page gives up for good on a request that a busy server did not answer
                        page.screenshot(path=str(tmp_path / f"{name}-not-seen-{left}.png"))
                        if not left:
                            raise
                        page.reload(wait_until="domcontentloaded")
                page.screenshot(path=str(tmp_path / f"{name}.png"))

            def wait_for(texts, milliseconds):
                for text in texts:
                    page.get_by_text(text).first.wait_for(timeout=milliseconds)

            fd = record(out, "evaluation")["result"]["numbers"]["fd"]
            photographed("run", f"{fd:g}"[:4], "Description")
            grid = page.locator("img[src*='get-artifact']").first
            grid.wait_for(timeout=60_000)
            assert grid.bounding_box()["y"] < 400
            assert grid.evaluate("picture => picture.naturalWidth") > 100
            photographed("all runs", "emoji-32", "fd_error", f"{fd:g}"[:4])
            smallest = min(trial["numbers"]["fd"] for trial in record(out, "sweep")["result"]["trials"])
            photographed("trials", "temperature", "cfg_scale", "fd_error", "seconds_per", f"{smallest:g}"[:4])
            photographed(
                "compared", "Run details", "temperature", "cfg_scale", "seconds_per_image", f"{smallest:g}"[:4]
            )
            photographed("version", "FD (efficientnet-lite0, 24)", f"{fd:g}"[:4])
            photographed("pictures", "samples/grid")
            page.locator("img[src*='get-artifact'], img[src^='blob:']").first.wait_for(timeout=60_000)
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(timeout=30)
    assert not is_served(f"{base}/health")
