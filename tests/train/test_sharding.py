"""A training cut among two real processes is that of one: losses, averages, a skipped step, and what it goes on from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from tests.small_model import randomised, small
from tests.train.test_training import CONFIG, LABELS, TOKENS
from tests.train.test_var import SHAPE, TRUNK, some_codes
from train.batches import StepInput, training_draws
from train.ema import EMA
from train.heldout_loss import loss_of
from train.memory import recompute_blocks
from train.models.autoregressor import compile_training
from train.optimizer import Optimization
from train.progress import EMA_OF_IT, load_progress, newest_whole, read_weights, snapshot, write_progress
from train.sharding import own, spread
from train.step import training_step

CLIPPED, BAD, SAVED, STEPS = replace(CONFIG, grad_clip=0.05, micro_batch=2), 2, 3, 5
CPU = torch.device("cpu")
CASES = {
    **{trunk: (small(trunk), TOKENS) for trunk in ("masked", "pixelcnn", "rnn")},
    "next-scale": (SHAPE, some_codes(8)),
    "next-scale shared": (replace(SHAPE, trunk=replace(TRUNK, adaln="shared")), some_codes(8)),
}
PREPARED = ("masked", "next-scale")


class Training:
    """One worker's part of a training of eight images in micro-batches of two, the fourth of which is once NaN."""

    def __init__(self, trunk: str, rank: int, world: int, prepare=lambda model: None) -> None:
        self.rank, self.world, (shape, self.tokens) = rank, world, CASES[trunk]
        self.model = randomised(shape).train()
        self.ema = EMA(self.model, 0.9)
        prepare(self.model)
        self.network = spread(self.model, self.ema.model, CPU, world, cut=True)
        self.optimization = Optimization(self.model, CLIPPED)
        self.parts = self.model, self.ema, self.optimization

    def step(self, step: int) -> float:
        micro_batches = []
        for first in range(self.rank * 8 // self.world, (self.rank + 1) * 8 // self.world, 2):
            rows = range(first, first + 2)
            tokens, draws = self.tokens[first : first + 2], training_draws(self.model.config, 1, step, rows)
            weight = float("nan") if step == BAD and first == 6 else self.world / 4
            micro_batches.append(StepInput(tokens, LABELS[first : first + 2], draws, step, weight))
        found = training_step(self.model, self.network, self.ema, self.optimization, micro_batches)
        self.averaged = loss_of(self.ema.model, replace(micro_batches[0], tokens=self.tokens[:2])).loss.item()
        return found["grad_norm"].item()

    def write(self, folder: Path) -> None:
        write_progress(folder, snapshot(*self.parts, self.rank, self.world), self.rank, self.world)


def prepared(model):
    """Blocks that are computed again, and are a graph each."""
    recompute_blocks(model)
    compile_training(model, cut=True, backend="eager")


def worker(rank, root):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    found = {}
    for trunk in CASES:
        training, folder = Training(trunk, rank, 2, prepared if trunk in PREPARED else lambda _: None), root / trunk
        norms = [training.step(step) for step in range(SAVED)]
        training.write(folder / "cut" / f"step_{SAVED:08d}")
        mine = sum(tensor.numel() for tensor in own(training.model.parameters()))
        assert load_progress(newest_whole(folder / "one"), *training.parts) == SAVED  # what one process wrote
        norms += [training.step(step) for step in range(SAVED, STEPS)]
        found[trunk] = norms, mine, training.averaged
    torch.save(found, root / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes found, and one by itself; and the folder of what they wrote."""
    root, alone = tmp_path_factory.mktemp("cut"), {}
    for trunk in CASES:
        alone[trunk] = training = Training(trunk, 0, 1)
        training.norms = [training.step(step) for step in range(SAVED)]
        training.write(root / trunk / "one" / f"step_{SAVED:08d}")
        training.norms += [training.step(step) for step in range(SAVED, STEPS)]
    torch.multiprocessing.spawn(worker, (root,), nprocs=2)
    return root, alone, [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("trunk", CASES)
def test_two_workers_with_half_the_weights_each_train_as_one_does(trunk, trained):
    _, alone, both = trained
    alone = alone[trunk]
    for norms, _, _ in (found[trunk] for found in both):
        assert norms[:BAD] + norms[BAD + 1 :] == pytest.approx(alone.norms[:BAD] + alone.norms[BAD + 1 :], rel=1e-4)
        assert not any(map(torch.isfinite, torch.tensor([norms[BAD], alone.norms[BAD]])))
    sizes, whole = [found[trunk][1] for found in both], sum(each.numel() for each in alone.model.parameters())
    assert sum(sizes) == whole
    assert max(sizes) < 0.6 * whole
    assert both[0][trunk][2] == pytest.approx(alone.averaged, rel=1e-4)


@pytest.mark.parametrize("trunk", CASES)
def test_one_worker_goes_on_from_what_two_wrote_each_its_part_of(trunk, trained):
    root, alone, _ = trained
    folder = newest_whole(root / trunk / "cut")
    training = Training(trunk, 0, 1)
    assert load_progress(folder, *training.parts) == SAVED
    for name, tensor in read_weights(folder, EMA_OF_IT).items():
        assert torch.equal(training.ema.state_dict()[name], tensor), name
    norms = [training.step(step) for step in range(SAVED, STEPS)]
    assert norms == pytest.approx(alone[trunk].norms[SAVED:], rel=1e-4)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)
