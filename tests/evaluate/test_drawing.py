"""Drawing and measuring on workers: nothing depends on how many there are, and nothing is drawn twice."""

import numpy as np
import pytest

from evaluate.config import DiffusionSteps, Evaluate, Generate, Sampling
from evaluate.drawn import find_ranges, range_path
from evaluate.extractors import CIFAR_RESNET
from evaluate.measure import Drawing, draw
from evaluate.networks import Classifier, Features
from infra.cluster import Compute, Stage
from infra.storage import location
from tests.evaluate.random_images import random_resnet
from tests.small_model import randomised, small
from tokenize_jobs.config import TokenizerFile
from train.card import ModelCard
from train.checkpoint import write_model

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, shape = tmp_path_factory.mktemp("model"), small()
    network = randomised(shape)
    card = ModelCard(
        model=shape, latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    write_model(location(folder), card, network.state_dict(), network.state_dict())
    return str(folder), random_resnet(folder)


def drawing(model, folder, images, batch_size=4, keep="grid"):
    folder_of_model, weights = model
    return Drawing(
        model=folder_of_model, weights=TokenizerFile("pixels", "", "pixels"),
        sampling=Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=3, last=3)),
        config=Evaluate(
            generate=Generate(images=images, batch_size=batch_size), keep=keep,
            classifier=Classifier(name=CIFAR_RESNET, weights=weights),
        ),
        features=Features(name=CIFAR_RESNET, weights=weights), folder=str(folder),
    )  # fmt: skip


def on(workers):
    return Compute(generate=Stage(workers=workers, cpus=1))


def test_images_do_not_depend_on_workers_and_batches(cluster, model, tmp_path):
    one, two = (
        draw(drawing(model, tmp_path / str(workers), 10, batch_size), on(workers))
        for workers, batch_size in ((1, 4), (2, 3))
    )
    np.testing.assert_allclose(one.features, two.features, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(one.judged, two.judged)
    assert len(one.shown) == len(two.shown) == 10


def test_cut_or_missing_files_are_drawn_again_and_more_images_are_added(cluster, model, tmp_path):
    folder = location(tmp_path)
    whole = draw(drawing(model, tmp_path, 10), on(1))
    kept = range_path(folder, range(4))
    before = kept.stat().st_mtime_ns
    cut, gone = range_path(folder, range(4, 8)), range_path(folder, range(8, 10))
    cut.write_bytes(cut.read_bytes()[:-100])
    gone.unlink()
    again = draw(drawing(model, tmp_path, 10), on(1))
    np.testing.assert_array_equal(whole.features, again.features)
    more = draw(drawing(model, tmp_path, 13), on(2))
    np.testing.assert_array_equal(more.features[:10], whole.features)
    assert kept.stat().st_mtime_ns == before
    assert sorted(find_ranges(folder), key=lambda span: span.start) == [
        range(4),
        range(4, 8),
        range(8, 10),
        range(10, 13),
    ]
    fewer = draw(drawing(model, tmp_path, 6), on(1))
    np.testing.assert_array_equal(fewer.features, whole.features[:6])
