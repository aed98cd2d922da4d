"""Recipes: whole experiments as functions. Each returns one frozen tree; a variant is `replace(recipe(), ...)`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evaluate.config import (
    YOUNG_MAX_TIMESTEP,
    Classifier,
    DiffusionSteps,
    Evaluate,
    Features,
    Generate,
    Reconstruction,
    Reference,
    Sampling,
)
from infra.errors import InputError, nearest
from infra.fingerprint import canonical, flatten, where
from infra.from_json import from_json
from tokenize_jobs.config import FitMultiScaleTokenizer, FitTokenizer, FitVQTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.sources.emoji import Emoji
from tokenize_jobs.sources.listing import ImageFiles
from train.config import Train
from train.models.config import Architecture, mar_base, mar_huge, mar_large, trunk
from train.models.heads import CategoricalHead, DiffusionHead
from train.models.trunks import CausalTrunk, MaskedTrunk, Trunk
from tune.config import FieldSweep, HeadSweep, NoSweep, SamplingSweep


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a result, from the pictures to the registered model."""

    name: str
    """Label of what is made; names the registered model too."""
    images: Emoji | ImageFiles = field(default_factory=ImageFiles)
    """Where the pictures come from, and which they are."""
    tokenizer: PretrainedTokenizer | FitTokenizer | FitVQTokenizer | FitMultiScaleTokenizer = field(
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


def emoji_32() -> Recipe:
    """OpenMoji faces and people at 32 px: the demo, minutes on a laptop's processor.

    It shows that the whole pipeline works, not that it generalises: some two hundred pictures are each seen more than
    a hundred times, and largely memorised.
    """
    # of 16 tokens all but two or three would always be masked at the published minimum of 0.7
    masked = replace(trunk(160, 4, 4), buffer_size=2, dropout=0.0, mask_ratio_min=0.3)
    model = Architecture(trunk=masked, head=DiffusionHead(width=256, batch_mul=2), patch_size=2)
    sampling = Sampling(
        ar_steps=8,
        diffusion_steps=DiffusionSteps(first=30, last=30),
        max_timestep=YOUNG_MAX_TIMESTEP,
        cfg_scale=1.5,
        temperature=0.5,
    )
    return Recipe(
        name="emoji-32",
        images=Emoji(),
        tokenizer=FitTokenizer(train_steps=1200),
        tokenize=Tokenize(image_size=32, batch_size=64),
        train=Train(
            model=model, train_steps=2000, batch_size=16, lr=2e-3, lr_schedule="cosine", warmup_steps=100,
            ema_decay=0.995, precision="fp32",  # few processors compute in bf16
            checkpoint_every=250, log_every=10,
        ),
        reference=Reference(features=Features(name="efficientnet-lite0")),
        evaluate=Evaluate(generate=Generate(images=512, sampling=sampling, batch_size=128), ceiling=True),
        tune=SamplingSweep(temperature=(0.5, 0.7), cfg_scale=(1.5, 3.0), ar_steps=(4, 8), images=64, finalists=0),
    )  # fmt: skip


def cifar10_32() -> Recipe:
    """CIFAR-10 (`--images.path`) at 32 px: 6,000 steps of 0.66 s on two cores with AVX2.

    A young model wants strong guidance: FD falls from CFG 7 up to 20 (docs/results/cifar10_epyc_202611.md).
    The weights of CIFAR ResNet-56 are given by `--reference.features.weights` and `--evaluate.classifier.weights`.
    """
    masked = replace(trunk(256, 4, 4), buffer_size=4, dropout=0.0, mask_ratio_min=0.5)
    model = Architecture(trunk=masked, head=DiffusionHead(width=384, depth=3, batch_mul=2), patch_size=2)
    sampling = Sampling(
        ar_steps=16, diffusion_steps=DiffusionSteps(first=50, last=50), max_timestep=YOUNG_MAX_TIMESTEP, cfg_scale=20.0,
    )  # fmt: skip
    return Recipe(
        name="cifar10-32",
        images=ImageFiles(num_classes=10),
        tokenizer=FitTokenizer(width=48, train_steps=1500),
        tokenize=Tokenize(image_size=32, batch_size=64),
        train=Train(
            model=model, train_steps=6000, batch_size=64, lr=1e-3, lr_schedule="cosine", warmup_steps=300,
            ema_decay=0.998, precision="fp32",  # a processor without bf16 instructions takes 25 times as long
            checkpoint_every=500,
        ),
        reference=Reference(features=Features(name="cifar-resnet-56"), images=5000),
        evaluate=Evaluate(
            generate=Generate(images=500, sampling=sampling), classifier=Classifier(name="cifar-resnet-56")
        ),
        tune=SamplingSweep(
            temperature=(), cfg_scale=(7.0, 10.0, 14.0, 20.0, 28.0), ar_steps=(), images=500, finalists=0
        ),
    )  # fmt: skip


def _table1(row: str, comes_next: str, chosen: Trunk, sampling: Sampling, *, codes: bool) -> Callable[[], Recipe]:
    """Return a recipe of Table 1 of Li et al. 2024: the same pictures, width, blocks, steps and batch in every row."""

    def recipe() -> Recipe:
        head = CategoricalHead() if codes else DiffusionHead(width=256, batch_mul=2)
        tokenizer = FitVQTokenizer(train_steps=1200) if codes else FitTokenizer(train_steps=1200)
        process = (
            {} if codes else {"diffusion_steps": DiffusionSteps(first=30, last=30), "max_timestep": YOUNG_MAX_TIMESTEP}
        )
        base = emoji_32()
        training = replace(base.train, model=Architecture(trunk=chosen, head=head), train_steps=1500, lr=1e-3)
        drawn = replace(base.evaluate.generate, sampling=replace(sampling, cfg_scale=1.5, **process))
        steps = (16, _TABLE_1_TOKENS) if isinstance(chosen, MaskedTrunk) else ()
        sweep = SamplingSweep(temperature=(), cfg_scale=(), ar_steps=steps, images=512, finalists=0)
        return replace(
            base, name=f"table1-{row}", tokenizer=tokenizer, train=training, tune=sweep if steps else NoSweep(),
            evaluate=replace(base.evaluate, generate=drawn, ceiling=False),
        )  # fmt: skip

    recipe.__doc__ = f"""Table 1 of Li et al. 2024 on the demo's pictures: {comes_next}, {_LOSSES[codes]}."""
    return recipe


_TABLE_1_TOKENS = 64
_LOSSES = {True: "cross-entropy on codes", False: "Diffusion Loss"}
_CAUSAL = CausalTrunk(width=128, depth=8, heads=4, buffer_size=4, dropout=0.0)
_MASKED = replace(trunk(128, 4, 4), buffer_size=4, dropout=0.0, mask_ratio_min=0.5)
_ROWS: Mapping[str, tuple[str, Trunk, Sampling]] = {
    "raster": (
        "raster AR", replace(_CAUSAL, order="raster"), Sampling(ar_steps=_TABLE_1_TOKENS, order="raster")
    ),
    "random": ("random-order AR", _CAUSAL, Sampling(ar_steps=_TABLE_1_TOKENS)),
    "mar": ("MAR, one token a step and many", _MASKED, Sampling(ar_steps=16)),
}  # fmt: skip
TABLE_1 = {
    f"table1-{row}-{loss}": _table1(f"{row}-{loss}", *of, codes=loss == "ce")
    for row, of in _ROWS.items()
    for loss in ("ce", "diff")
}
"""table1-{raster, random, mar}-{ce, diff}; of mar, the sweep draws both one token a step and many."""


def _imagenet_256(name: str, model: Architecture, micro_batch: int, cfg_scale: float) -> Recipe:
    """ImageNet at 256 px as published: KL-16 latents, 400 epochs, 256 AR steps x 100 diffusion steps, FID-50K.

    What differs from the published code: bf16 in place of fp16 with a scaled loss, and norms, the head's output and the
    loss in fp32; one share of masked tokens a step for the whole batch, where each of its GPUs drew its own; only
    masked tokens go through the head, which the loss leaves as it is; a step that is not finite is skipped, where
    training ended; latents are scaled by their measured deviation instead of by 0.2325. The published FIDs are of 800
    epochs: give --train.train-steps 500000 for those.
    """
    sampling = Sampling(ar_steps=256, cfg_scale=cfg_scale, precision="bf16")
    train = Train(model=model, micro_batch=micro_batch)
    return Recipe(name=name, train=train, evaluate=Evaluate(generate=Generate(sampling=sampling)))


def imagenet_256_mar_b() -> Recipe:
    """MAR-B, 208 M parameters; published FID-50K 2.31 at CFG 2.9, of 800 epochs where this trains 400.

    1 to 32 GPUs take 64 images at once: 24 GiB each as counted (3.9 of weights and moments), 10 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-b", mar_base(), 64, 2.9)


def imagenet_256_mar_l() -> Recipe:
    """MAR-L, 479 M parameters; published FID-50K 1.78 at CFG 3.0, of 800 epochs where this trains 400.

    1 to 32 GPUs take 64 images at once: 43 GiB each as counted (8.9 of weights and moments), 18 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-l", mar_large(), 64, 3.0)


def imagenet_256_mar_h() -> Recipe:
    """MAR-H, 943 M parameters; published FID-50K 1.55 at CFG 3.2, of 800 epochs where this trains 400.

    1 to 64 GPUs take 32 images at once: 46 GiB each as counted (17.6 of weights and moments), 25 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-h", mar_huge(), 32, 3.2)


def own_images(path: str) -> Recipe:
    """Images at `path`, with KL-16 and MAR-B."""
    return replace(imagenet_256_mar_b(), name="own-images", images=ImageFiles(path=path))


def given_model(path: str) -> Recipe:
    """The trained model at `path`, measured against real images: nothing is trained."""
    return Recipe(name="given-model", checkpoint=path)


def given_images(path: str) -> Recipe:
    """Images at `path` that any code made, measured against real images: nothing is trained, and nothing drawn."""
    return Recipe(name="given-images", images=ImageFiles(heldout_share=0), samples=path)


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


RECIPES: dict[str, Callable[[], Recipe]] = {
    "emoji-32": emoji_32,
    "cifar10-32": cifar10_32,
    **TABLE_1,
    "imagenet-256-mar-b": imagenet_256_mar_b,
    "imagenet-256-mar-l": imagenet_256_mar_l,
    "imagenet-256-mar-h": imagenet_256_mar_h,
}
