"""The pieces of the benchmark of the loop run without a cluster, at a size of seconds."""

from dataclasses import replace

import pytest

from benchmarks.loop import CONFIG, of_log, plain_seconds, stalls, store_of
from train.models.config import tiny


def test_plain_loop_trains_from_the_store_that_the_benchmark_writes(tmp_path):
    times = plain_seconds(store_of(tmp_path), replace(CONFIG, train_steps=4, log_every=1), warm=1)
    assert len(times) == 3
    assert all(0 < seconds < 60 for seconds in times)


def test_first_copy_and_later_ones_of_a_state_are_timed():
    size, times = stalls(tiny().on(latent_size=8, latent_channels=4, num_classes=10))
    assert len(times) == 4
    assert 0 < size < 1


def test_step_and_waiting_are_told_of_the_lines_between_warm_up_and_last():
    lines = [{"step": step, "time": 2.0 * step, "data_seconds": 4.0} for step in range(20, 121, 20)]
    lines[0]["data_seconds"], lines[-1]["time"] = 1000.0, 1000.0
    steps, waited = of_log(lines, warm=40)
    assert steps == pytest.approx([2.0] * 3)
    assert waited == pytest.approx(0.1)
