"""Recorded denoising steps. What is recorded runs again here, where a GPU replays it: all but the recording itself."""

from collections import Counter

import pytest
import torch

from tests.small_model import HEADS, randomised, small
from train.models import replay
from train.models.heads import HeadSampling
from train.models.replay import Replays, padded

ROUNDING = 1e-5  # a processor cuts products of other sizes into other blocks; three to six steps


@pytest.fixture
def recorded(monkeypatch):
    """Counts what is recorded."""
    found = []

    def record(work):
        found.append(work)
        return work

    monkeypatch.setattr(replay, "record", record)
    return found


def drawn(head, rows, steps=5, scale=2.0, **changes):
    torch.manual_seed(rows)
    condition, null, noise = torch.randn(rows, 32), torch.randn(rows, 32), torch.randn(steps, rows, 3)
    return head.sample(condition, noise, HeadSampling(steps=steps, **changes), null, scale)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1.0, 3.5])
@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_tokens_of_recorded_steps_are_those_of_a_plain_walk(kind, scale, precision, recorded):
    """With more rows and with fewer than before: nothing of an earlier walk is seen by a later one."""
    plain, replayed = (randomised(small(kind=kind)).head for _ in range(2))
    replayed.replays = Replays(replayed.denoise)
    rounding = ROUNDING if precision == "fp32" else 1e-2
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for rows, steps in ((16, 6), (130, 3), (1, 4), (16, 6)):
            expected, found = (drawn(head, rows, steps, scale) for head in (plain, replayed))
            torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
            if rows == 16:  # nothing is padded
                assert torch.equal(found, expected)
    assert len(recorded) == 2  # of 16 rows and of 160


@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"solver": "ddim"}, {"temperature_on": "prediction", "temperature": 0.9}]
)
@torch.no_grad()
def test_settings_of_a_step_are_recorded_anew_and_those_of_the_walk_are_not(change, recorded):
    plain, replayed = (randomised(small()).head for _ in range(2))
    replayed.replays = Replays(replayed.denoise)
    drawn(replayed, 16)
    drawn(replayed, 16, 9, max_timestep=900)
    drawn(replayed, 16, scale=7.0)
    assert len(recorded) == 1
    assert torch.equal(drawn(replayed, 16, **change), drawn(plain, 16, **change))
    assert len(recorded) == 2


@torch.no_grad()
def test_graphs_are_bounded_and_the_latest_stay(recorded, monkeypatch):
    monkeypatch.setattr(replay, "_MOST_GRAPHS", 2)
    head = randomised(small()).head
    head.replays = Replays(head.denoise)
    for temperature in (1.0, 0.9, 1.0, 0.8, 1.0):
        drawn(head, 16, temperature=temperature)
    assert len(recorded) == 3
    drawn(head, 16, temperature=0.9)
    assert len(recorded) == 4


def test_rows_are_padded_to_few_numbers_of_which_less_than_a_fifth_is_waste():
    sizes = Counter(padded(rows) for rows in range(1, 4097))
    assert len(sizes) == 28
    assert all(rows <= padded(rows) == padded(padded(rows)) for rows in range(1, 4097))
    assert all((padded(rows) - rows) / padded(rows) < 0.2 for rows in range(64, 4097))
    assert all(padded(batch * tokens) == batch * tokens for batch in (16, 64, 256) for tokens in range(1, 9))
