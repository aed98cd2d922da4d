"""A model of the least size in a registry: random weights, 4 x 4 pixels, five classes, no training."""

from pathlib import Path

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import DiffusionSteps, Sampling
from evaluate.results import EvaluationResult
from pipeline.registry import Candidate, register
from tests.small_model import randomised, small
from tokenize_jobs.config import TokenizerFile
from train.card import ModelCard
from train.checkpoint import write_model

SAMPLING = Sampling(ar_steps=2, diffusion_steps=DiffusionSteps(first=3, last=3), cfg_scale=1.5, max_timestep=500)
CONDITIONS = {
    "extractor": "efficientnet-lite0", "layer": "features", "dimension": 1280, "extractor_weights": "0" * 16, "image_size": 4, "images": 64,
    "reference": "1" * 16, "reference_images": 100, "precision": "fp32",
}  # fmt: skip


def measured(fd=50.0, error=1.0, **conditions):
    of = Conditions(**{**CONDITIONS, **conditions})
    return EvaluationResult(
        metric=of.title, numbers={"fd": fd}, errors={"fd": error}, floor={}, ceiling={}, conditions=of, heldout_images=0,
        rank_deficient=True, sampling=SAMPLING, seed=0, ema=True,
    )  # fmt: skip


def write_small(folder: Path, seed=0):
    model = small()
    card = ModelCard(
        model=model, latent_scale=8.0, classes=("a", "b", "c", "d", "e"), tokenizer_kind="pixels",
        tokenizer_hash="pixels", train_steps=0, images_seen=0, ema_decay=0.99,
    )  # fmt: skip
    weights = randomised(model, seed).state_dict()
    write_model(folder, card, weights, weights)
    return folder


def candidate(folder, number, **of):
    """The `number`-th candidate for the registered model 'small', whose evaluation is `of`."""
    return Candidate(
        name="small", run_name="small", run=f"run{number}", model=write_small(folder / f"model{number}", number),
        checkpoint=f"checkpoint{number}", tokenizer=TokenizerFile("pixels", hash="pixels"), image_size=4,
        evaluation=f"evaluation{number}", measured=measured(**of),
    )  # fmt: skip


def registered(folder, uri, number=0, **of):
    return register(candidate(folder, number, **of), uri, UPath(folder))
