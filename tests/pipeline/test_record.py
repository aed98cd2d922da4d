"""What goes to MLflow: each step once, at most so many points a curve, the few parameters that tell runs apart."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from PIL import Image

from infra.artifact import Step
from infra.cluster import Compute
from infra.errors import InputError
from infra.result import Result
from infra.storage import location
from infra.tracking import Tracker
from pipeline.recipes import RECIPES, emoji_32
from pipeline.record import MOST_POINTS, LiveMetrics, Thinned, told_apart
from pipeline.results import RegistrationResult
from pipeline.run import _made_and_recorded, _recorded_whole
from pipeline.run import run as run_recipe
from pipeline.steps import Plan
from train.results import GRIDS


@pytest.mark.parametrize(("steps", "every"), [(12, 2), (2000, 10), (250_000, 20), (6007, 1), (1, 1)])
def test_curve_has_at_most_so_many_points_evenly_and_the_last_however_it_is_cut(steps, every):
    lines = [{"step": step, "loss": 1} for step in range(every, steps + 1, every)]
    lines += [{"step": steps, "loss": 1}] if lines[-1]["step"] != steps else []
    whole = Thinned(steps).of(lines)
    assert len(whole) <= MOST_POINTS
    assert whole[-1]["step"] == steps
    assert whole == lines if steps <= MOST_POINTS else len(whole) >= min(len(lines), MOST_POINTS) / 2
    piecewise = Thinned(steps)
    assert [line for start in range(0, len(lines), 7) for line in piecewise.of(lines[start : start + 7])] == whole


def test_metric_of_few_lines_keeps_its_points_where_others_are_thinned():
    lines = [{"step": step, "loss": 1} | ({"heldout_loss": 2} if step % 999 == 0 else {}) for step in range(1, 20_001)]
    kept = Thinned(20_000).of(lines)
    assert [line["step"] for line in kept if "heldout_loss" in line] == list(range(999, 20_001, 999))
    assert sum("loss" in line for line in kept) <= MOST_POINTS


def test_last_step_that_a_killed_worker_logs_again_is_kept_once():
    thinned, last = Thinned(10), {"step": 10, "loss": 1.0}
    assert thinned.of([{"step": 9, "loss": 2.0}, last, {"step": 9, "loss": 2.0}, last]) == [
        {"step": 9, "loss": 2.0},
        last,
    ]


def test_lines_sent_while_training_are_not_sent_again_at_its_end_nor_by_another_process(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    lines = [{"step": step, "time": step, "loss": 1.0 / step} for step in range(1, 9)]
    tracker = Tracker(uri, location(tmp_path))
    run = tracker.open("checkpoint", "abc")
    tracker.history(run, lines[:3])
    tracker.history(run, lines[:5])
    Tracker(uri, location(tmp_path)).history(run, lines)
    points = MlflowClient(uri).get_metric_history(run, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, 9))


def test_curve_of_a_record_that_was_cut_short_is_not_doubled_by_the_next(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", location(tmp_path))
    run = tracker.open("trial", "abc")
    points = [(step, 1.0 / step) for step in range(20, 101, 20)]
    for sent in (points[:3], points, points):
        tracker.curve(run, "mse", sent)
    assert [(point.step, point.value) for point in tracker.client.get_metric_history(run, "mse")] == points


def test_what_was_measured_of_a_checkpoint_is_sent_while_the_training_goes_on_and_its_picture_once(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", location(tmp_path))
    step = Step(location(tmp_path), "checkpoint", "small", {}, {}, lambda _: Made(), Made)
    (tmp_path / str(step.path) / GRIDS).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / str(step.path) / GRIDS / "step_00000020.png")
    for _ in range(2):  # a driver that was killed, and the next one
        live = LiveMetrics(every_seconds=0)
        live.follow(tracker, tracker.open("small", "parent"), step, "commit", 100)
        live({"step": 40, "time": 1.0, "loss": 0.5})
        live({"step": 20, "time": 2.0, "fd": 7.0})
    run = tracker.open("checkpoint", step.fingerprint, tracker.open("small", "parent"))
    assert [(point.step, point.value) for point in tracker.client.get_metric_history(run, "fd")] == [(20, 7.0)]
    assert [point.step for point in tracker.client.get_metric_history(run, "train/loss")] == [40]
    pictures = [file.path for file in tracker.client.list_artifacts(run, "images") if file.path.endswith(".png")]
    assert len(pictures) == 1
    assert "meanwhile~step_00000020" in pictures[0]


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_of_a_run_are_few_and_hold_what_was_overridden(name):
    recipe = RECIPES[name]()
    assert len(told_apart(recipe)) < 12
    assert told_apart(replace(recipe, train=replace(recipe.train, ema_decay=0.5)))["train.ema_decay"] == 0.5
    assert "train.ema_decay" not in told_apart(emoji_32())


@dataclass(frozen=True, kw_only=True)
class Made(Result):
    n: int = 1


REGISTERED = RegistrationResult(name="mar-s", version=3, alias="champion")


def test_step_made_while_the_store_is_away_stops_no_other_but_registration_and_is_recorded_by_the_next_run(
    tmp_path, monkeypatch, free_port, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", location(tmp_path))
    there, away = tracker.client, MlflowClient(f"http://127.0.0.1:{free_port()}")
    run = tracker.open("small", "abc")

    def step(name, client):
        def make(_):
            tracker.client = client
            return REGISTERED if name == "registration" else Made()

        result = RegistrationResult if name == "registration" else Made
        return Step(root=location(tmp_path), name=name, label="s", config=None, inputs={}, make=make, result=result)

    steps = [step("latents", there), step("checkpoint", away), step("evaluation", there), step("registration", away)]
    with pytest.raises(InputError, match=r"recorded at sqlite:.* checkpoint; the same command"):
        _made_and_recorded(steps, tracker, run)
    assert "checkpoint is not recorded" in capsys.readouterr().err
    assert [step.find() is not None for step in steps] == [True, True, True, False]
    with pytest.raises(InputError, match="registration; the same command"):
        _made_and_recorded(steps, tracker, run)
    assert steps[-1].find() is not None
    assert not _recorded_whole(steps)  # so that the next run goes on
    tracker.client = there
    done, pages = _made_and_recorded(steps, tracker, run)
    assert [of.was_cached for of in done.values()] == [True, True, True, True]
    recorded = sorted(child.info.run_name for child in tracker.children(run))
    assert recorded == sorted(step.name for step in steps)
    assert _recorded_whole(steps) == pages
    assert not _recorded_whole(
        [replace(steps[0], inputs={"of": "another run"}), *steps[1:]]
    )  # of the same registration


def test_run_whose_steps_are_all_made_and_recorded_prints_the_links_of_the_first_without_asking_the_store(
    tmp_path, monkeypatch, capsys
):
    step = Step(location(tmp_path), "registration", "s", None, {}, lambda _: REGISTERED, RegistrationResult)
    plan = Plan(emoji_32(), location(tmp_path), {"registration": step})
    monkeypatch.setattr("pipeline.run.planner", lambda *_, **__: SimpleNamespace(plan=lambda: plan))

    def links_printed():
        run_recipe(plan.recipe, Compute(out=str(tmp_path)))
        return [line for line in capsys.readouterr().out.splitlines() if "://" in line or line.startswith("MLflow")]

    first = links_printed()
    assert first[0] == f"MLflow (after `mar ui --compute.out {tmp_path}`):"
    assert any(line.endswith("/#/models/mar-s/versions/3") for line in first)
    with monkeypatch.context() as none:
        none.setattr("infra.tracking.Tracker", None)
        assert links_printed() == first
