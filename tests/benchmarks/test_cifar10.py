"""The command that trains on CIFAR-10 without Ray runs from a store to a grid; its classifier is the evaluation's."""

import numpy as np
import torch
from PIL import Image

from benchmarks.cifar10 import class_logits
from infra.storage import location
from tests.evaluate.random_images import random_images, random_resnet
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokenizers.pixels import Pixels

CLASSES = ["cat", "dog"]


def store_of_pixels(folder):
    """Images of 16 px as their own latents."""
    kind = Pixels.tokens(16)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, *kind.shape)).astype(np.float16)
    table = to_table(kind, [str(image) for image in range(64)], list(np.arange(64) % 2), *images)
    commit_shard(location(folder), "a", table, kind, [])
    publish(location(folder), ["a"], kind, {"classes": CLASSES, "tokenizer": {"kind": "pixels", "weights": "pixels"}})
    return str(folder)


def test_classifier_tells_of_images_what_the_evaluations_does(tmp_path):
    from safetensors.torch import load_file

    from evaluate.features import CifarResNet

    path, images = random_resnet(tmp_path), random_images(0, 8)
    network = CifarResNet("cifar-resnet-56", ["logits"], feature_extractor_weights_path=path).eval()
    with torch.no_grad():
        expected = network.layers(torch.from_numpy(images).permute(0, 3, 1, 2))[1]
    torch.testing.assert_close(class_logits(load_file(path), images), expected, rtol=1e-4, atol=1e-4)


def test_steps_samples_and_accuracy_come_from_a_store_without_ray(tmp_path_factory, python_without):
    folder = tmp_path_factory.mktemp("cifar10")
    words = ["--store", store_of_pixels(folder / "store"), "--classifier", random_resnet(folder), "--out", str(folder)]
    more = ["--device", "cpu", "--seconds", "0", "--images", "4"]
    done = python_without(("ray", "mlflow", "tyro", "diffusers"), "-m", "benchmarks.cifar10", *words, *more)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1].split("|")
    assert row[2].strip() == "1"
    assert "of 4, CFG" in row[5]
    assert Image.open(folder / "cifar10.png").size[0] > 2 * 64
