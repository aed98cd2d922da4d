"""Extractors: what they need, and that their features belong to single images."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluate.extractors import CIFAR_RESNET, INCEPTION, LITE0, NETWORKS
from evaluate.features import CifarResNet, Extractor
from evaluate.networks import Classifier, Features
from evaluate.networks import Extractor as Name
from infra.errors import InputError
from tests.evaluate.random_images import random_images, random_resnet


def test_extractor_lets_no_convolution_round_to_tf32():
    extractor, allowed = Extractor(Features(name=LITE0)), []
    extractor.network.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    extractor(random_images(3, 2))
    assert allowed == [False]


def test_extractor_features_do_not_depend_on_the_batch():
    extractor, images = Extractor(Features(name=LITE0)), random_images(3, 8)
    together = extractor(images)
    apart = np.concatenate([extractor(images[:3]), extractor(images[3:])])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


def test_choices_are_the_networks_there_are():
    from typing import get_args

    assert set(get_args(Name)) == set(NETWORKS)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {LITE0}))
def test_missing_weights_are_named_with_origin_and_place(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError) as told:
        Features(name=name).check()
    for part in (NETWORKS[name].file, NETWORKS[name].origin, str(tmp_path / "hub" / "checkpoints")):
        assert part in str(told.value)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another branch"])
def test_missing_or_empty_repository_of_dinov2_is_told_with_its_place(there, monkeypatch, tmp_path):
    """torch.hub would ask the network for it, or run into a hubconf.py that is not there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name, hub = "dinov2-vit-s-14", tmp_path / "hub"
    (hub / "checkpoints").mkdir(parents=True)
    (hub / "checkpoints" / NETWORKS[name].file).touch()
    repository = hub / "facebookresearch_dinov2_main"
    if there == "an empty folder":
        repository.mkdir()
    if there == "another branch":
        (hub / "facebookresearch_dinov2_v1").mkdir()
        (hub / "facebookresearch_dinov2_v1" / "hubconf.py").touch()
    with pytest.raises(InputError, match=f"facebookresearch/dinov2.*hubconf.py, at {repository}"):
        Features(name=name).check()
    repository.mkdir(exist_ok=True)
    (repository / "hubconf.py").touch()
    Features(name=name).check()


@pytest.mark.parametrize("name", [INCEPTION, "vgg16", "clip-vit-b-32"])
def test_other_weights_than_the_published_are_refused(name, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"other")
    with pytest.raises(InputError, match="not the published"):
        Features(name=name, weights=str(tmp_path / "x.pth")).check()


def test_pickle_in_a_file_of_weights_is_not_run(tmp_path, monkeypatch):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "vgg16.pth"
    torch.save({"x": Harmful()}, path)
    monkeypatch.setattr("evaluate.extractors.sha256", lambda _: NETWORKS["vgg16"].sha256)
    with pytest.raises(pickle.UnpicklingError):
        Extractor(Features(name="vgg16", weights=str(path)))
    assert not (tmp_path / "ran").exists()


def test_resnet_takes_no_other_weights(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not the weights of a CIFAR ResNet-56"):
        CifarResNet(CIFAR_RESNET, ["64"], str(tmp_path / "x.safetensors"))


def test_classifier_must_know_as_many_classes_as_the_model(tmp_path):
    classifier = Classifier(name="cifar-resnet-56", weights=random_resnet(tmp_path))
    classifier.check(10)
    with pytest.raises(InputError, match="knows 10 classes, the model has 2"):
        classifier.check(2)
    Classifier().check(2)


def test_logits_are_given_by_classifiers_only(tmp_path):
    features, logits = Extractor(Features(name=CIFAR_RESNET, weights=random_resnet(tmp_path))).layers(
        random_images(0, 5)
    )
    assert (features.shape, logits.shape) == ((5, 64), (5, 10))
    assert features.dtype == logits.dtype == np.float32
