"""Metrics: torch-fidelity's own answers on the same images and extractor, and properties of each."""

import numpy as np
import pytest
import torch
from torch_fidelity import calculate_metrics

from evaluate.drawn import Drawn
from evaluate.extractors import CIFAR_RESNET
from evaluate.features import Extractor
from evaluate.measure import feature_set
from evaluate.metrics import accuracy
from evaluate.metrics.sets import FeatureSet, FeatureSums
from evaluate.metrics.table import errors, numbers
from evaluate.networks import Features
from tests.evaluate.random_images import random_images, random_resnet

THEIRS = {
    "fd": "frechet_inception_distance", "kid": "kernel_inception_distance_mean", "precision": "precision",
    "recall": "recall", "inception_score": "inception_score_mean",
}  # fmt: skip


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return Extractor(Features(name=CIFAR_RESNET, weights=random_resnet(tmp_path_factory.mktemp("weights"))))


def set_of(extractor, images, classes=10):
    features, logits = extractor.layers(images)
    return feature_set(Drawn(features, logits, logits.argmax(1), images[:0]), classes)


def test_numbers_equal_torch_fidelitys_own(extractor, tmp_path):
    first, second = random_images(0, 75), random_images(1, 66)
    ours = numbers(set_of(extractor, first), set_of(extractor, second))
    theirs = calculate_metrics(
        input1=Images(first), input2=Images(second), fid=True, kid=True, prc=True, isc=True, kid_subset_size=66,
        feature_extractor=CIFAR_RESNET, feature_layer_fid="64", feature_layer_kid="64", feature_layer_prc="64",
        feature_layer_isc="logits", feature_extractor_weights_path=random_resnet(tmp_path), cuda=False, verbose=False,
        save_cpu_ram=True, batch_size=16, cache=False,
    )  # fmt: skip
    for name, key in THEIRS.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-8, abs=1e-6), name


def test_same_images_have_no_distance_and_full_precision(extractor):
    found = set_of(extractor, random_images(0, 150))
    ours = numbers(found, found)
    assert ours["fd"] == pytest.approx(0, abs=1e-4)
    assert (ours["precision"], ours["recall"]) == (1, 1)


def test_what_is_not_known_is_left_out():
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    of, only_statistics = (
        FeatureSet(FeatureSums.of(rows).statistics(), rows),
        FeatureSet(FeatureSums.of(rows).statistics()),
    )
    assert set(numbers(of, only_statistics)) == {"fd"}
    assert set(errors(of, only_statistics, {"fd": 1.0})) == {"fd"}
    assert set(numbers(only_statistics, of)) == {"fd"}


def test_every_error_is_finite_and_belongs_to_a_number(extractor):
    of, real = set_of(extractor, random_images(0, 150)), set_of(extractor, random_images(1, 130))
    found = numbers(of, real)
    bars = errors(of, real, found)
    assert set(bars) == {"fd", "kid", "precision", "recall", "inception_score", "accuracy"}
    assert set(bars) <= set(found)
    assert all(np.isfinite(value) and value >= 0 for value in bars.values())


def test_accuracy_is_the_share_of_images_taken_for_their_class():
    rows = np.zeros((6, 2), np.float32)
    of = FeatureSet(
        FeatureSums.of(rows).statistics(),
        rows,
        labels=np.array([0, 1, 2, 0, 1, 2]),
        judged=np.array([0, 0, 2, 0, 1, 1]),
    )
    assert accuracy.measure(of, of) == {"accuracy": pytest.approx(4 / 6)}
    assert accuracy.by_class(of) == {0: 1.0, 1: 0.5, 2: 0.5}


def test_constant_images_have_finite_numbers_and_errors(extractor):
    of, real = set_of(extractor, np.full((30, 32, 32, 3), 7, np.uint8)), set_of(extractor, random_images(1, 40))
    found = numbers(of, real)
    assert set(found) == {"fd", "kid", "precision", "recall", "inception_score", "accuracy"}
    assert np.isfinite(list(found.values())).all()
    assert np.isfinite(list(errors(of, real, found).values())).all()
    assert found["inception_score"] == pytest.approx(1)
