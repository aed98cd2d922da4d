"""What a trial does with a model of any kind."""

import pytest

from evaluate.config import DiffusionSteps, Sampling
from evaluate.subject import Subject
from tests.small_model import TRUNKS, small, written
from tokenize_jobs.config import TokenizerFile
from tune.trial import Work, time_alone


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_model_is_timed_whatever_number_of_steps_its_trunk_takes(trunk, tmp_path):
    model = small(trunk)
    written(tmp_path, model)
    steps = model.trunk.least_steps(model.num_tokens, model.tokens.together)
    sampling = Sampling(ar_steps=steps, diffusion_steps=DiffusionSteps(first=2, last=2), order="raster")
    subject = Subject(str(tmp_path), TokenizerFile("pixels", hash="pixels"), 4)
    (seconds,) = time_alone(Work(subject, "", "", 2, 0, 1, sampling), [sampling])
    assert seconds > 0
