"""Which finished training a longer one goes on from: one that differs in nothing but its number of steps."""

from dataclasses import replace

import pytest

from infra.artifact import Step
from infra.storage import location
from pipeline.trainings import shorter
from train.config import Train
from train.results import CheckpointResult

SHORT = Train(train_steps=100)


def step(root, config, **changes):
    def make(_):
        return CheckpointResult(
            train_steps=config.train_steps, images_seen=0, parameters=1, images=1, images_held_back=0, last={}
        )

    given = {"inputs": {"latents": "abc"}, "code": ("train/step.py",), **changes}
    return Step(
        root=location(root), name="checkpoint", label="x", config=config, make=make, result=CheckpointResult, **given
    )


def test_longest_training_with_fewer_steps_is_gone_on_from(tmp_path):
    for steps in (50, 100, 300):
        step(tmp_path, replace(SHORT, train_steps=steps)).build()
    assert (
        shorter(step(tmp_path, replace(SHORT, train_steps=200)), 200).name == step(tmp_path, SHORT).find().fingerprint
    )
    assert shorter(step(tmp_path, replace(SHORT, train_steps=40)), 40) is None


@pytest.mark.parametrize(
    "changes", [{"lr": 1e-5}, {"seed": 2}, {"batch_size": 8}, {"warmup_steps": 7}, {"micro_batch": 4}]
)
def test_training_that_differs_otherwise_is_not(changes, tmp_path):
    step(tmp_path, SHORT).build()
    assert shorter(step(tmp_path, replace(SHORT, train_steps=200, **changes)), 200) is None


def test_nor_is_one_of_other_latents_nor_one_whose_rate_falls_nor_one_to_be_made_anew(tmp_path):
    falling = replace(SHORT, lr_schedule="cosine")
    for config in (SHORT, falling):
        step(tmp_path, config).build()
    longer = replace(SHORT, train_steps=200)
    assert shorter(step(tmp_path, longer, inputs={"latents": "def"}), 200) is None
    assert shorter(step(tmp_path, replace(falling, train_steps=200)), 200) is None
    assert shorter(step(tmp_path, longer, again=True), 200) is None
    assert shorter(step(tmp_path, longer), 200) is not None


def test_one_that_other_code_made_is_gone_on_from_and_told(tmp_path, capsys):
    made = step(tmp_path, SHORT, code=("train/step.py", "train/ema.py")).build()
    record = made.path / "artifact.json"
    digest = made.record["code"]["train/ema.py"]
    record.write_text(record.read_text().replace(digest, "0" * len(digest)))
    longer = step(tmp_path, replace(SHORT, train_steps=200), code=("train/step.py", "train/ema.py"))
    assert shorter(longer, 200) == made.path
    assert "made by other code (train/ema.py); --again checkpoint" in capsys.readouterr().out
