"""What evaluations keep is computed once: features whatever is shown of them, and the floor; and what a driver holds."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluate import evaluate as evaluation
from evaluate import finish
from evaluate.config import DiffusionSteps, Evaluate, Generate, Sampling
from evaluate.drawn import Drawn, find_ranges, merged, range_path, write_drawn
from evaluate.extractors import CIFAR_RESNET
from evaluate.measure import Drawing, _Measurer, feature_set
from evaluate.metrics.sets import FeatureSet, FeatureSums
from evaluate.networks import Features
from evaluate.reference import RealFeatures
from evaluate.results import ReferenceResult
from evaluate.subject import Subject
from infra.cluster import Compute
from infra.storage import location
from tests.evaluate.random_images import random_resnet
from tests.small_model import small, written
from tokenize_jobs.config import TokenizerFile

FAST = Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=3, last=3))
PIXELS = TokenizerFile("pixels", "", "pixels")
SHOWN = [Evaluate(), Evaluate(grid_columns=2), Evaluate(keep="none"), Evaluate(keep="all")]


def about(features):
    return ReferenceResult(
        images=40, digest="d", image_size=4, features=features, extractor_weights="w", kept_features=40
    )  # fmt: skip


def test_features_are_the_same_whatever_is_shown_of_the_images(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(evaluation, "draw", lambda drawing, compute: folders.append(drawing.folder))
    subject = Subject("model", PIXELS, 4)
    for config in (*SHOWN, replace(SHOWN[0], generate=Generate(seed=1))):
        out = location(tmp_path / "evaluation")
        evaluation._draw(config, subject, about(Features(name=CIFAR_RESNET)), FAST, out, Compute(), "digest")
    assert len(set(folders[:-1])) == 1
    assert folders[-1] != folders[0]


def test_range_is_drawn_again_only_where_more_is_to_be_kept_of_it(tmp_path):
    """Of five classes: a grid of one column shows images 0 to 4, one of two columns 5 to 9 too."""
    model = written(location(tmp_path / "model"), small())
    features = Features(name=CIFAR_RESNET, weights=random_resnet(tmp_path))
    drawing = Drawing(
        model=str(model), weights=PIXELS, sampling=FAST, config=Evaluate(grid_columns=1), features=features,
        folder=str(tmp_path / "features"),
    )  # fmt: skip
    worker, span = _Measurer(drawing, 1, 1), range(4, 8)
    worker(span)
    kept = find_ranges(location(drawing.folder))[span]
    assert kept.shown_at.tolist() == [4]
    for config, serves in (
        (drawing.config, True),
        (Evaluate(keep="none"), True),
        (Evaluate(grid_columns=2), False),
        (Evaluate(grid_columns=1, keep="all"), False),
    ):
        assert replace(drawing, config=config).is_served_by(span, kept, 5) == serves
    worker.config = Evaluate(grid_columns=2, keep="all")
    worker(span)
    more = find_ranges(location(drawing.folder))[span]
    assert more.shown_at.tolist() == [4, 5, 6, 7]
    assert replace(drawing, config=worker.config).is_served_by(span, more, 5)
    assert drawing.is_served_by(span, more, 5)
    np.testing.assert_array_equal(kept.shown[0], more.shown[0])
    np.testing.assert_array_equal(kept.features, more.features)


def real(folder, seed, count):
    rows = np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    return RealFeatures(about(Features()), FeatureSet(FeatureSums.of(rows).statistics(), rows), [], folder)


def read_only(*_):
    raise PermissionError


def test_floor_is_computed_once_for_each_reference(tmp_path, monkeypatch):
    out = location(tmp_path)
    against, heldout = real(out / "reference", 0, 40), real(out / "heldout", 1, 30)
    first = heldout.numbers_against(against)
    assert first["fd"] > 0

    def refuse(*_):
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr("evaluate.reference.numbers", refuse)
        assert heldout.numbers_against(against) == first
        with pytest.raises(AssertionError):
            heldout.numbers_against(replace(against, about=replace(against.about, digest="another")))
    (kept,) = Path(str(out / "heldout")).iterdir()
    kept.write_bytes(kept.read_bytes()[:20])
    assert heldout.numbers_against(against) == first
    with monkeypatch.context() as patched:
        patched.setattr("evaluate.reference.write_json", read_only)
        assert heldout.numbers_against(replace(against, about=replace(against.about, digest="a third"))) == first
    measured = finish.Measured(
        real=against, floor=heldout, samples=real(out / "samples", 2, 30).set, classes=("a",), shown={},
        precision="fp32", seconds={"drawing": 1.0},
    )  # fmt: skip
    numbers, sets = finish.numbers, []
    monkeypatch.setattr(finish, "numbers", lambda of, real: sets.append(of) or numbers(of, real))
    assert finish.finish(measured, out).floor == first
    assert sets == [measured.samples]


def peak(folder, images, width=256):
    """Bytes that the driver holds at most while ranges become one set, and those of the features themselves."""
    for start in range(0, images, 64):
        rows = np.random.default_rng(start).standard_normal((64, width)).astype(np.float32)
        empty = np.empty((64, 0), np.float32)
        write_drawn(
            range_path(folder, range(start, start + 64)),
            Drawn(rows, empty, np.empty(0, np.int64), np.empty((0, 4, 4, 3), np.uint8)),
        )
    tracemalloc.start()
    feature_set(merged(find_ranges(folder).values()), 10)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held, images * width * 4


def test_driver_holds_features_once_more_while_it_merges_them_and_nothing_else_that_grows(tmp_path):
    (few, their_features), (many, all_features) = (
        peak(location(tmp_path / str(images)), images) for images in (2048, 8192)
    )
    assert many - few <= 2.1 * (all_features - their_features)
