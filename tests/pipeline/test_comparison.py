"""`mar compare`: one page of several evaluations, which says what differs and what may not be compared."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from infra.cluster import Compute
from infra.fingerprint import canonical
from pipeline.compared import samples
from pipeline.comparison import differing, write_comparison
from pipeline.comparison import measured as measured_at
from pipeline.recipes import given_model
from tests.pipeline.registered import measured, write_small
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.sources.emoji import Emoji


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
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    assert "Fewer images than features" in done.stderr
    text = page.read_text()
    for shown in ("50 ± 1", "40 ± 1", "train.lr", "0.1", "0.2", "reference_images"):
        assert shown in text
    assert "train.seed" not in text
    assert text.count('class="warning"') == 1
    assert "Fewer images than features" in text
    assert "http" not in text
    pictures = [part.split('"')[0] for part in text.split("data:image/png;base64,")[1:]]
    colours = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p))))[0, 0].tolist() for p in pictures]
    assert colours == [[255, 0, 0], [0, 0, 255]]


def evaluated_small(root, number, seed):
    """An evaluation, with another seed's grid, of a small model that is there; and the log that it was trained with."""
    path = write_small(root / f"model{number}", number)
    recipe = replace(given_model(str(path)), images=Emoji(), tokenizer=PretrainedTokenizer(kind="pixels"))
    of = evaluated(root, number, canonical(recipe, identity=False), "red")
    record = json.loads(Path(of).read_text())
    record["result"]["seed"], record["inputs"] = seed, {"checkpoint": f"checkpoint{number}"}
    Path(of).write_text(json.dumps(record))
    log = root / "artifacts" / "checkpoint" / "small" / f"checkpoint{number}" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"step": s, "loss": 1 / s, "heldout_loss": 2 / s}) + "\n" for s in (1, 2, 3)))
    return of


def test_samples_of_other_seeds_are_drawn_anew_alike_and_losses_lie_over_each_other(tmp_path):
    compute = Compute(out=str(tmp_path))
    pair = [measured_at(evaluated_small(tmp_path, number, seed=number), compute) for number in (0, 1)]
    write_comparison(pair, UPath(tmp_path) / "page.html", compute)
    text = (tmp_path / "page.html").read_text()
    pictures = [part.split('"')[0] for part in text.split("data:image/png;base64,")[1:]]
    grids = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures]
    assert grids[0].shape == grids[1].shape
    assert not np.array_equal(*grids)  # other weights
    assert text.count("heldout_loss") >= 1
    alike = samples(
        [
            pair[0],
            replace(pair[0], name="again", artifact=replace(pair[0].artifact, result=replace(pair[0].result, seed=9))),
        ],
        compute,
    )
    assert alike[0] == alike[1]


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
