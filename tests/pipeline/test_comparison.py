"""`mar compare`: one page of several evaluations, which says what differs and what may not be compared."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from infra.fingerprint import canonical
from pipeline.comparison import differing
from tests.pipeline.registered import measured


def evaluated(root, number, recipe, colour, **of):
    """An evaluation's artifact, with a grid of one colour."""
    folder = root / "artifacts" / "evaluation" / "small" / f"evaluation{number}"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), colour).save(folder / "grid.png")
    record = {"step": "evaluation", "fingerprint": folder.name, "recipe": recipe, "result": canonical(measured(**of))}
    (folder / "artifact.json").write_text(json.dumps(record))
    return str(folder / "artifact.json")


@pytest.fixture
def pair(tmp_path):
    recipe = {"name": "small", "train": {"lr": 0.1, "seed": 0}}
    other = {"name": "small", "train": {"lr": 0.2, "seed": 0}}
    return [evaluated(tmp_path, 0, recipe, "red"), evaluated(tmp_path, 1, other, "blue", fd=40.0)]


def test_page_shows_numbers_errors_what_differs_and_both_grids_and_loads_nothing(pair, tmp_path, mar_here):
    page = tmp_path / "page.html"
    done = mar_here("compare", *pair, "--to", str(page))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(page), "")
    text = page.read_text()
    for shown in ("50 ± 1", "40 ± 1", "train.lr", "0.1", "0.2", "reference_images"):
        assert shown in text
    assert "train.seed" not in text
    assert 'class="warning"' not in text
    assert "http" not in text
    pictures = [part.split('"')[0] for part in text.split("data:image/png;base64,")[1:]]
    colours = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p))))[0, 0].tolist() for p in pictures]
    assert colours == [[255, 0, 0], [0, 0, 255]]


def test_numbers_of_other_conditions_are_shown_with_a_warning_that_names_the_field(pair, tmp_path, mar_here):
    third = evaluated(tmp_path, 2, {"name": "<b>"}, "green", images=32)
    page = tmp_path / "page.html"
    done = mar_here("compare", *pair, third, "--to", str(page))
    assert done.returncode == 0
    assert "are not comparable: images 64 and 32" in done.stderr
    assert "are not comparable: images 64 and 32" in page.read_text()
    assert "<b>" not in page.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("emoji-32",), "at least two"),
        (("emoji-33", "emoji-32"), "unknown recipe 'emoji-33'"),
        (("./nothing/artifact.json", "emoji-32"), "cannot be read"),
        (("models:/small@champion", "emoji-32"), "no runs are recorded there"),
        (("emoji-32", "emoji-32"), "was not evaluated yet"),
    ],
)
def test_what_cannot_be_compared_is_named_and_no_page_written(words, told, tmp_path, mar_here):
    done = mar_here("compare", *words, "--compute.out", str(tmp_path), "--to", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_rows_that_differ_are_those_of_any_two_trees():
    trees = [{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, {"a": 1, "d": 0}]
    assert differing(trees) == [("b.c", [2, 3, "(absent)"]), ("d", ["(absent)", "(absent)", 0])]
