"""The page of an evaluation: self-contained, and what it says is what was measured."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from evaluate.extractors import LITE0
from evaluate.metrics.sets import FeatureSet, FeatureSums
from evaluate.networks import Features
from evaluate.real_images import _thumbnail
from evaluate.reference import RealFeatures
from evaluate.report.neighbours import nearest
from evaluate.report.page import Findings, write_report
from evaluate.results import REPORT, EvaluationResult, ReferenceResult
from infra.fingerprint import canonical
from infra.storage import location, write_json

CLASSES = tuple(f"class <{label}>" for label in range(3))


def features(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)


def feature_set(rows, **more):
    return FeatureSet(FeatureSums.of(rows).statistics(), rows, **more)


def findings(**changes):
    conditions = Conditions(
        extractor=LITE0, layer="1280", dimension=1280, extractor_weights="w", image_size=32, images=30,
        reference="digest-of-the-source", reference_images=40, precision="fp32",
    )  # fmt: skip
    result = EvaluationResult(
        metric=conditions.title, numbers={"fd": 12.345, "kid": 0.5, "accuracy": 0.4}, errors={"fd": 0.678},
        floor={"fd": 1.5}, ceiling={}, conditions=conditions, heldout_images=20, rank_deficient=conditions.is_rank_deficient,
        sampling=Sampling(temperature=0.87), seed=7, ema=True,
    )  # fmt: skip
    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    about = ReferenceResult(
        images=40, digest="d", image_size=32, features=Features(name=LITE0), extractor_weights="w", kept_features=40
    )
    found = {
        "result": result, "classes": CLASSES, "generated": feature_set(features(0, 30), labels=labels, judged=(labels + (np.arange(30) > 14)) % 3),
        "shown": {index: images[index] for index in range(6)},
        "real": RealFeatures(about, feature_set(features(1, 40)), [_thumbnail(image) for image in images]),
        "heldout": feature_set(features(2, 20)),
    }  # fmt: skip
    return Findings(**{**found, **changes})


def page(found, folder):
    write_report(found, location(folder))
    return (folder / REPORT).read_text()


class Tags(HTMLParser):
    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_beside_it(tmp_path):
    text, tags = page(findings(), tmp_path), Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.links
    assert all(link.startswith(("data:", "#")) for link in tags.links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.S)


@pytest.mark.parametrize(
    "said", ["12.3", "0.678", "1.5", "FD (efficientnet-lite0, 30)", "Rank-deficient", "digest-of-the-source", "0.87", "fp32",
             "among 40 of the reference", "class &lt;0&gt;"],
)  # fmt: skip
def test_page_says_numbers_errors_conditions_and_names(tmp_path, said):
    assert said in page(findings(), tmp_path)


def test_class_names_cannot_write_into_the_page(tmp_path):
    assert "<script>" not in page(findings(classes=("<script>alert(1)</script>", "b", "c")), tmp_path)


def test_page_without_classifier_or_single_real_images_leaves_these_out(tmp_path):
    found = findings()
    about = found.real.about
    bare = FeatureSet(found.real.set.statistics)
    text = page(
        findings(generated=feature_set(features(0, 30)), real=RealFeatures(about, bare, []), shown={}), tmp_path
    )
    assert "Nearest real images" not in text
    assert "<h2>Classes" not in text


def test_same_findings_are_the_same_page(tmp_path):
    assert page(findings(), tmp_path) == page(findings(), tmp_path)


def test_nearest_are_those_of_every_distance():
    queries, candidates = features(3, 1100), features(4, 50)
    found = nearest(queries, candidates, 3)
    every = np.linalg.norm(queries[:, None] - candidates[None], axis=2)
    np.testing.assert_array_equal(found.places[:, 0], every.argmin(1))
    np.testing.assert_allclose(found.distances, np.sort(every, 1)[:, :3], atol=1e-3)
    assert nearest(queries, candidates[:2], 3).places.shape == (1100, 2)


def test_checkpoints_of_other_lengths_measured_alike_are_a_curve(tmp_path):
    def other(name, **changes):
        result = replace(findings().result, **changes)
        write_json(tmp_path / name / "artifact.json", {"result": canonical(result, identity=False)})

    mine = replace(findings().result, train_steps=100, training="a")
    (tmp_path / "mine").mkdir()
    other("seed", training="a", train_steps=50, seed=8)
    other("images", training="a", train_steps=50, conditions=replace(mine.conditions, images=31))
    other("another", training="b", train_steps=50)
    other("given", train_steps=50)
    assert "<h2>Checkpoints" not in page(findings(result=mine), tmp_path / "mine")
    other("half", training="a", train_steps=50, numbers={"fd": 20.0})
    assert "<h2>Checkpoints" in page(findings(result=mine), tmp_path / "mine")
    given = replace(mine, training="")
    assert "<h2>Checkpoints" not in page(findings(result=given), tmp_path / "mine")
