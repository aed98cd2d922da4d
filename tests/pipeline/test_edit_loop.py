"""Read the training step, change it in one place, see the effect: nothing old is shown for new, nothing is lost."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.pipeline.tiny import REPOSITORY, TINY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def checkout(made, tmp_path):
    """A copy of the code to edit, its command line, and what a whole run made."""
    folder = tmp_path / "checkout"
    shutil.copytree(made[0] / "artifacts", tmp_path / "out" / "artifacts")
    ignored = shutil.ignore_patterns(".*", "output", "tests", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)

    def mar(command, *words):
        return subprocess.run(
            [sys.executable, "-m", "pipeline", command, "emoji-32", *TINY, "--compute.out", str(tmp_path / "out"), *words],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=280,
        )  # fmt: skip

    return folder, mar


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def states(told):
    return {line.split()[0]: line.split()[1] for line in told.stdout.split("\n\n")[0].splitlines()[2:]}


def weights(tmp_path):
    return sorted(path.read_bytes() for path in (tmp_path / "out").rglob("artifacts/checkpoint/**/ema.safetensors"))


def test_edited_step_is_named_then_made_anew_when_asked_and_the_old_checkpoint_stays(checkout, tmp_path):
    folder, mar = checkout
    edit(folder / "infra" / "console.py", "def say(", "_UNUSED = 1\n\n\ndef say(")
    edit(folder / "train" / "step.py", "import Tensor, nn\n", "import Tensor, nn  # a comment\n")
    assert states(mar("status"))["checkpoint"] == "cached"
    first = weights(tmp_path)

    edit(
        folder / "train" / "step.py",
        "    optimization.zero_grad()",
        "    optimization.grad_clip = 1e-3\n    optimization.zero_grad()",
    )
    told = mar("status")
    assert states(told)["latents"] == "cached"
    assert states(told)["checkpoint"] == "outdated"
    assert "since then changed: train/step.py" in told.stdout
    cached = mar("train")
    assert "made by other code; since then changed: train/step.py" in cached.stdout
    assert weights(tmp_path) == first

    again = mar("train", "--again", "checkpoint")
    assert again.returncode == 0, again.stderr
    assert "latents | cached" in again.stdout
    assert "checkpoint | done" in again.stdout
    assert first[0] in weights(tmp_path)
    assert len(set(weights(tmp_path))) == 2
    assert states(mar("status"))["checkpoint"] == "cached"
    later = mar("train", "--again", "checkpoint")
    assert "checkpoint | cached" in later.stdout
    assert len(weights(tmp_path)) == 2
