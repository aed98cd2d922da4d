"""What a recipe is: one frozen tree of all that decides a result, and how its fields are replaced by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluate.config import Evaluate, Reconstruction, Reference
from infra.errors import InputError, nearest
from infra.fingerprint import canonical, flatten, where
from infra.from_json import from_json
from tokenize_jobs.config import (
    FitMultiScaleTokenizer,
    FitPCATokenizer,
    FitTokenizer,
    FitVQTokenizer,
    PretrainedTokenizer,
    Tokenize,
)
from tokenize_jobs.sources.emoji import Emoji
from tokenize_jobs.sources.listing import ImageFiles
from train.config import Train
from tune.config import FieldSweep, HeadSweep, NoSweep, SamplingSweep


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a result, from the pictures to the registered model."""

    name: str
    """Label of what is made; names the registered model too."""
    images: Emoji | ImageFiles = field(default_factory=ImageFiles)
    """Where the pictures come from, and which they are."""
    tokenizer: PretrainedTokenizer | FitTokenizer | FitPCATokenizer | FitVQTokenizer | FitMultiScaleTokenizer = field(
        default_factory=PretrainedTokenizer
    )
    """What turns pictures into latents and back."""
    tokenize: Tokenize = field(default_factory=Tokenize)
    """How pictures are cropped and encoded."""
    train: Train = field(default_factory=Train)
    """The model and its training."""
    reference: Reference = field(default_factory=Reference)
    """The real images that generated ones are measured against."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """How the trained model is measured."""
    tune: NoSweep | SamplingSweep | HeadSweep | FieldSweep = field(default_factory=NoSweep)
    """What is searched: sampling settings, of which the evaluation measures the best, or trainings side by side."""
    latents: str = where(default="")
    """Latent store to train on instead of making one; its content is part of every identity."""
    checkpoint: str = where(default="")
    """Directory of a trained model to take instead of training one; its content is part of every identity."""
    samples: str = where(default="")
    """Images to measure instead of a model's, named as --images.path; what they are is part of the identity."""
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    """How the tokenizer itself is measured, by `mar evaluate --reconstruction`."""


def with_fields(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """Return a recipe with fields, by dotted name, replaced. Raises InputError for unknown ones and wrong types."""
    tree = canonical(recipe, identity=False)
    known = flatten(tree)
    for name, value in fields.items():
        if name not in known:
            raise InputError(f"--tune: a recipe has no field {name}.{nearest(name, known)}")
        *folders, leaf = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch[folder]
        branch[leaf] = value
    return from_json(json.dumps(tree), Recipe, "--tune")
