"""The draws of a training step, derived anew from the named streams; and gradients spread over real processes."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from infra.errors import InputError
from infra.seeding import stream
from tests.small_model import STILL, randomised, small, step_loss
from tests.train.test_heldout_loss import half_held, measured
from tests.train.test_training import CONFIG
from tokenize_jobs.sources.heldout import Heldout
from tokenize_jobs.store.reader import LatentStore
from train.batches import StepInput, step_inputs, training_draws
from train.config import Train
from train.ema import EMA
from train.optimizer import Optimization
from train.step import training_step


def masked_share(uniform):
    """The truncated normal's quantile, by bisection of its distribution function."""
    normal = NormalDist(1.0, 0.25)
    low, high = 0.7, 1.0
    mass = normal.cdf(high) - normal.cdf(low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (normal.cdf(middle) - normal.cdf(0.7)) / mass < uniform else (low, middle)
    return low


@pytest.mark.parametrize("generation", ["masked", "random-causal", "raster-causal"])
@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_training_draws_come_from_the_named_streams_in_their_order(generation, kind):
    model, seed, step, rows = small(generation, kind, label_drop=0.5), 7, 3, range(2, 6)
    draws = training_draws(model, seed, step, rows)
    predicted = math.ceil(16 * masked_share(stream("mask", seed, step).random())) if generation == "masked" else 16
    assert draws.num_visible == 16 - predicted
    for index, row in enumerate(rows):
        random = stream("row", seed, step, row)
        order = np.arange(16) if generation == "raster-causal" else random.permutation(16)
        assert draws.order[index].tolist() == order.tolist()
        assert draws.drop_label[index].item() == (random.random() < 0.5)
        uniform = random.random((4, predicted), dtype=np.float32)
        noise = random.standard_normal((4, predicted, 3), dtype=np.float32)
        assert np.array_equal(draws.head["uniform"][:, index], uniform)
        assert np.array_equal(draws.head["noise"][:, index], noise)


def gradients(rank, world, wrap):
    """The gradients on one worker's share of eight rows."""
    torch.set_num_threads(1)
    rows = range(8 // world * rank, 8 // world * (rank + 1))
    model = randomised(small())
    tokens = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 16, 3), dtype=np.float32))
    inputs = StepInput(tokens[rows.start : rows.stop], torch.arange(rows.start, rows.stop) % 5,
                       training_draws(model.config, 0, 0, rows))  # fmt: skip
    network = wrap(model)  # kept: it reduces gradients while it lives
    step_loss(model, inputs, network)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def worker(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = measured(LatentStore(f"{folder}/store", heldout=Heldout(0.5)), randomised(small()), rank, 2)
    torch.save((gradients(rank, 2, DistributedDataParallel), found), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_in_every_parameter_and_its_loss_on_held_out_images(tmp_path):
    heldout = measured(half_held(tmp_path / "store"), randomised(small()))
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    expected = gradients(0, 1, lambda model: model)
    for rank in range(2):
        found, loss = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert loss == pytest.approx(heldout, rel=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_micro_batches_and_their_dropout_are_the_same_for_any_number_of_workers(tmp_path):
    store, model = half_held(tmp_path), small()
    config = Train(batch_size=8, micro_batch=2)
    whole = step_inputs(store, model, config, 3)
    assert len({each.dropout_seed for each in whole}) == len(whole) == 4
    for world in (2, 3, 4):
        shares = [step_inputs(store, model, config, 3, rank, world) for rank in range(world)]
        assert all(shares)
        for one, other in zip(whole, [each for share in shares for each in share], strict=True):
            assert torch.equal(one.tokens, other.tokens)
            assert torch.equal(one.draws.order, other.draws.order)
            assert one.dropout_seed == other.dropout_seed
            assert other.weight == pytest.approx(world / 4)
    plain = step_inputs(store, model, replace(config, micro_batch=0), 3)[0]
    assert torch.equal(torch.cat([each.tokens for each in whole]), plain.tokens)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradient_of_micro_batches_is_the_mean_over_the_workers_that_share_them(tmp_path, dropout):
    store, model = half_held(tmp_path), small()
    model = replace(model, trunk=replace(model.trunk, dropout=dropout))

    def gradient(micro_batch, rank=0, world=1):
        inputs = step_inputs(store, model, Train(batch_size=8, micro_batch=micro_batch), 3, rank, world)
        network = randomised(model).train()
        training_step(network, network, EMA(network, 0.9), Optimization(network, STILL), inputs)
        return {name: parameter.grad for name, parameter in network.named_parameters()}

    expected, shares = gradient(2), [gradient(2, rank, 3) for rank in range(3)]
    for name, gradient_of_one in expected.items():
        mean = sum(share[name] for share in shares) / 3
        torch.testing.assert_close(mean, gradient_of_one, rtol=1e-4, atol=1e-6, msg=name)
    plain, cut = (torch.cat([each.flatten() for each in found.values()]) for found in (gradient(0), expected))
    assert torch.allclose(plain, cut, rtol=1e-4, atol=1e-6) == (dropout == 0)


@pytest.mark.parametrize(
    ("changes", "workers", "said"),
    [
        ({"micro_batch": 3}, 1, "micro-batch 3 does not divide --train.batch-size 8"),
        ({"micro_batch": -2}, 1, "micro-batch -2 does not divide"),
        ({"micro_batch": 4}, 3, "--compute.train.workers 3: .* 2 micro-batches of --train.micro-batch 4"),
        ({"micro_batch": 4}, (3, 2), "most-workers 2: no less than --compute.train.workers 3"),
        ({"micro_batch": 4}, (1, 3), "--compute.train.workers 3: .* 2 micro-batches"),
        ({}, (1, 4), "most-workers 4: .*--train.micro-batch"),
        ({}, 3, "batch-size 8 is not a multiple of --compute.train.workers 3"),
        ({}, (2, 0, 0.5), "--compute.train.gpus 0.5: 2 workers .* cannot share a GPU; .*--compute.train.workers 1"),
        ({"micro_batch": 2}, (1, 4, 0.25), "--compute.train.gpus 0.25: 4 workers"),
    ],
)
def test_batch_that_cannot_be_shared_is_refused(changes, workers, said):
    with pytest.raises(InputError, match=said):
        Train(batch_size=8, **changes).check_workers(*(workers if isinstance(workers, tuple) else (workers,)))
    Train(batch_size=8, micro_batch=2).check_workers(1, 4)
    Train(batch_size=8, micro_batch=2).check_workers(3)
    Train(batch_size=8).check_workers(1, 0, 0.5)
    Train(batch_size=8).check_workers(2, 0, 2.0)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_workers_that_cut_the_weights_take_equally_many_micro_batches_of_the_same_total(world, tmp_path):
    store, config = half_held(tmp_path), replace(CONFIG, batch_size=8, micro_batch=1)
    each = [step_inputs(store, small(), config, 0, rank, world, equally_many=True) for rank in range(world)]
    assert len(set(map(len, each))) == 1
    weighted = [inputs for rank in each for inputs in rank if inputs.weight]
    assert len(weighted) == 8
    assert sum(inputs.weight for inputs in weighted) == pytest.approx(world)
