"""Fitting the small tokenizer: an interrupted fit goes on, on any device, with the same result and one log."""

import numpy as np
import pytest
import torch

from tokenize_jobs.config import FitTokenizer
from tokenize_jobs.tokenizers.fit import fit

CONFIG = FitTokenizer(stride=2, channels=4, width=8, depth=1, train_steps=6, batch_size=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


class Killed(Exception):
    """The fit's process ends here."""


def fit_until(out, step, monkeypatch):
    """Fit, saving after each second step, until the process is killed in `step`; returns the model and the first step done."""
    monkeypatch.setattr("tokenize_jobs.tokenizers.fit._SAVE_EVERY", 2)
    steps = []

    def report(done, psnr):
        steps.append(done)
        if done == step:
            raise Killed

    try:
        model = fit(CONFIG, IMAGES, out, report)
    except Killed:
        model = None
    return model, steps[0]


def test_fit_killed_and_run_again_goes_on_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, _ = fit_until(tmp_path / "whole", 0, monkeypatch)
    assert fit_until(tmp_path / "killed", 5, monkeypatch) == (None, 1)
    again, first = fit_until(tmp_path / "killed", 0, monkeypatch)
    assert first == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.gpu
def test_fit_begun_on_a_gpu_goes_on_without_one(tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    fit_until(tmp_path, 3, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, first = fit_until(tmp_path, 0, monkeypatch)
    assert first == 3
