"""What can go: found by a walk over random artifacts that another walk checks; nothing needed or running is lost."""

import json
import random
from dataclasses import replace

import pytest

from infra.cluster import Compute
from infra.hold import holding
from infra.storage import location, write_json
from pipeline.plan import Planner
from pipeline.prune import remove, unneeded
from pipeline.recipes import emoji_32

STEPS = ("pictures", "latents", "checkpoint", "evaluation", "registration")


def artifact(root, step, fingerprint, inputs, recipe="emoji-32"):
    folder = root / "artifacts" / step / recipe / fingerprint
    record = {"step": step, "inputs": inputs, "recipe": {"name": recipe}, "fingerprint": fingerprint}
    write_json(folder / "artifact.json", record)
    (folder / "data").write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_is_closed_and_what_goes_is_referred_to_by_nothing_left(tmp_path, seed):
    drawn, made = random.Random(seed), {}
    for number in range(30):
        step = drawn.choice(STEPS)
        older = [path for path, (kind, _) in made.items() if STEPS.index(kind) < STEPS.index(step)]
        inputs = {str(i): path.name for i, path in enumerate(drawn.sample(older, min(2, len(older))))}
        recipe = drawn.choice(["emoji-32", "emoji-32", "own"])
        made[artifact(tmp_path, step, f"{number:08d}", inputs, recipe)] = (step, inputs)
    going = {item.path for item in unneeded([emoji_32()], Compute(out=str(tmp_path)))}
    left = set(made) - going
    assert going
    assert all(path.parent.name == "own" or made[path][0] == "registration" or any(
        path.name in made[other][1].values() for other in left) for path in left)  # fmt: skip
    assert not {name for path in left for name in made[path][1].values()} & {path.name for path in going}


def test_planned_steps_of_current_recipes_stay_finished_or_not(tmp_path):
    compute = Compute(out=str(tmp_path))
    kept, other = (
        Planner(r, compute).plan() for r in (emoji_32(), replace(emoji_32(), train=replace(emoji_32().train, lr=1)))
    )
    for plan in (kept, other):
        plan.path("checkpoint").mkdir(parents=True)
        (plan.path("checkpoint") / "model").write_text("x" * 50)
    assert [(str(i.path), i.bytes, i.why) for i in unneeded([emoji_32()], compute)] == [
        (str(other.path("checkpoint")), 50, "unfinished")
    ]
    assert not unneeded([emoji_32(), other.recipe], compute)


def test_running_steps_are_never_touched_and_keep_what_they_may_read(tmp_path):
    compute = Compute(out=str(tmp_path))
    finished = artifact(tmp_path, "latents", "0" * 8, {})
    running, dead = (tmp_path / "artifacts" / "checkpoint" / "emoji-32" / (c * 8) for c in "ab")
    for folder in (running, dead):
        folder.mkdir(parents=True)
    before = unneeded([emoji_32()], compute)
    assert {item.path for item in before} == {finished, running, dead}
    with holding(location(running)):
        assert {item.path for item in unneeded([emoji_32()], compute)} == {dead}
        assert {item.path for item in remove(before)} == {finished, dead}
        assert running.exists()
    assert not finished.exists()
    assert not dead.exists()


def test_damaged_record_is_kept(tmp_path):
    folder = artifact(tmp_path, "latents", "0" * 8, {})
    (folder / "artifact.json").write_text('{"step": "lat')
    assert not unneeded([emoji_32()], Compute(out=str(tmp_path)))


def test_command_lists_and_removes_only_when_told(mar_here, tmp_path):
    folder = artifact(tmp_path, "latents", "0" * 8, {})
    listed = mar_here("prune", "--compute.out", str(tmp_path))
    assert str(folder) in listed.stdout
    assert "--remove" in listed.stdout
    assert folder.exists()
    kept = folder / "artifact.json"
    assert json.loads(kept.read_text())["step"] == "latents"
    removed = mar_here("prune", "--remove", "--compute.out", str(tmp_path))
    assert removed.returncode == 0, removed.stderr
    assert str(folder) in removed.stdout
    assert not folder.exists()


def test_features_that_evaluations_share_stay_as_long_as_one_of_these_does(tmp_path):
    compute = Compute(out=str(tmp_path))
    evaluation = artifact(tmp_path, "evaluation", "0" * 8, {}, "own")
    features = [tmp_path / "artifacts" / "evaluation" / label / "features" for label in ("own", "gone")]
    for folder in features:
        folder.mkdir(parents=True)
        (folder / "part.npz").write_bytes(b"x" * 10)
    assert [(item.path, item.why) for item in unneeded([emoji_32()], compute)] == [
        (features[1], "nothing refers to it")
    ]
    assert evaluation.exists()
