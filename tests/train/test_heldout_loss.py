"""The loss on held-out images: what a second computation finds, whoever shares the work, and no mark on the training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infra.storage import location
from tests.small_model import randomised, small, step_loss
from tests.train.test_training import CONFIG, start
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokens import GaussianLatents
from train.batches import step_inputs
from train.heldout_loss import HeldoutLoss
from train.step import training_step

LAYOUT = GaussianLatents(3, 4, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return half_held(tmp_path_factory.mktemp("store"))


def half_held(folder):
    """A store of 90 images, of which about half are held back."""
    moments = np.random.default_rng(0).standard_normal((2, 90, *LAYOUT.shape)).astype(np.float16)
    table = to_table(LAYOUT, [f"k{i}" for i in range(90)], list(np.arange(90) % 4), *moments)
    commit_shard(location(folder), "a", table, LAYOUT, [])
    about = {"classes": list("abcd"), "tokenizer": {"kind": "pixels", "weights": "w"}}
    publish(location(folder), ["a"], LAYOUT, about)
    return LatentStore(str(folder), heldout=Heldout(0.5))


def measured(store, model, rank=0, world=1):
    return HeldoutLoss(store.held(), CONFIG, rank, world).measure(model, torch.autocast("cpu", enabled=False), CPU)


def test_store_and_its_held_back_images_are_two_sides_of_the_whole(store):
    held, both = store.held(), np.concatenate([store._rows, store.held()._rows])
    assert len(held) == store.held_back > 20
    assert held.held_back == len(store)
    assert sorted(both) == list(range(90))
    assert np.array_equal(held.held().labels, store.labels)


def test_it_is_what_the_training_step_finds_on_the_held_out_images(store):
    model = randomised(small())
    config, trunk = replace(CONFIG, seed=0, batch_size=4), replace(model.config.trunk, mask_ratio_min=0.0)
    asked = replace(model.config, trunk=trunk, label_drop=0.0)
    inputs = [step_inputs(store.held(), asked, config, part)[0] for part in range(16)]
    expected = np.mean([step_loss(model, each).item() for each in inputs])
    found = measured(store, model)
    assert found.keys() == {"heldout_loss", "heldout_mse", "heldout_vb"}
    assert found["heldout_loss"] == pytest.approx(expected, rel=1e-6)


def test_trainings_with_other_shares_of_masked_tokens_and_dropped_labels_are_asked_the_same(store):
    model = randomised(small())
    found = measured(store, model)
    model.config = replace(
        model.config, trunk=replace(model.config.trunk, mask_ratio_min=0.5), label_drop=0.9
    )  # fmt: skip
    assert measured(store, model) == found


def test_training_that_is_measured_is_the_same_training(store):
    parts, others = start(), start()
    for step in range(3):
        for model, *rest in (parts, others):
            torch.manual_seed(step)
            training_step(model, model, *rest, step_inputs(store, model.config, CONFIG, step))
        if step == 1:
            measured(store, parts[1].model)
    for module, other in ((parts[0], others[0]), (parts[1].model, others[1].model)):
        assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("world", [1, 2, 3, 7, 16, 24, 32])
def test_all_workers_measure_as_many_parts_and_together_every_part(world, store):
    parts = [HeldoutLoss(store.held(), CONFIG, rank, world)._parts for rank in range(world)]
    assert len(set(map(len, parts))) == 1
    assert set().union(*parts) == set(range(16))
