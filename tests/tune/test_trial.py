"""What a trial does with a model of any kind."""

import pytest

from evaluate.config import DiffusionSteps, Sampling
from evaluate.subject import Subject
from tests.small_model import TRUNKS, randomised, small
from tokenize_jobs.config import TokenizerFile
from train.card import ModelCard
from train.checkpoint import write_model
from tune.trial import Work, time_alone


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_model_is_timed_whatever_number_of_steps_its_trunk_takes(trunk, tmp_path):
    model = small(trunk)
    card = ModelCard(
        model=model, latent_scale=8.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=0, images_seen=0, ema_decay=0.99,
    )  # fmt: skip
    weights = randomised(model).state_dict()
    write_model(tmp_path, card, weights, weights)
    steps = model.trunk.least_steps(model.num_tokens, model.tokens.together)
    sampling = Sampling(ar_steps=steps, diffusion_steps=DiffusionSteps(first=2, last=2), order="raster")
    subject = Subject(str(tmp_path), TokenizerFile("pixels", hash="pixels"), 4)
    (seconds,) = time_alone(Work(subject, "", "", 2, 0, 1, sampling), [sampling])
    assert seconds > 0
