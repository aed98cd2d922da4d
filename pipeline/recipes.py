"""Recipes: whole experiments as functions. Each returns one frozen tree; a variant is `replace(recipe(), ...)`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from evaluate.config import YOUNG_MAX_TIMESTEP, DiffusionSteps, Evaluate, Generate, Reference, Sampling
from evaluate.networks import Classifier, Features
from pipeline.published import PUBLISHED, imagenet_256_mar_b
from pipeline.recipe import Recipe
from tokenize_jobs.config import FitMultiScaleTokenizer, FitTokenizer, FitVQTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.sources.emoji import Emoji
from tokenize_jobs.sources.listing import ImageFiles
from train.config import Train
from train.models.config import Architecture, trunk
from train.models.heads import CategoricalHead, DiffusionHead, FlowHead, Head, MixtureHead, NadeHead, RegressionHead
from train.models.trunks import CausalTrunk, ConvolutionalTrunk, MaskedTrunk, NextScaleTrunk, RecurrentTrunk, Trunk
from tune.config import NoSweep, SamplingSweep


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


def emoji_32_var() -> Recipe:
    """The demo's pictures by next-scale prediction (VAR): 130 codes at six scales, in six passes an image."""
    base = emoji_32()
    chosen = NextScaleTrunk(width=128, depth=8, heads=4, drop_path=0.0)
    drawn = Sampling(ar_steps=6, order="raster", cfg_scale=2.0, cfg_schedule="steps")
    return replace(
        base,
        name="emoji-32-var",
        tokenizer=FitMultiScaleTokenizer(train_steps=1200),
        train=replace(base.train, model=Architecture(trunk=chosen, head=CategoricalHead()), train_steps=1500, lr=1e-3),
        evaluate=replace(base.evaluate, generate=replace(base.evaluate.generate, sampling=drawn), ceiling=False),
        tune=SamplingSweep(
            temperature=(0.8, 1.0), cfg_scale=(1.0, 2.0), ar_steps=(), top_k=(0, 32), images=64, finalists=0
        ),
    )


def cifar10_32() -> Recipe:
    """CIFAR-10 (`--images.path`) at 32 px: about an hour on two cores with AVX2.

    A young model wants strong guidance: FD falls up to CFG 48 (docs/results/cifar10_xeon_202611.md).
    The weights of CIFAR ResNet-56 are given by `--reference.features.weights` and `--evaluate.classifier.weights`.
    """
    masked = replace(trunk(256, 4, 4), buffer_size=4, dropout=0.0, mask_ratio_min=0.5)
    model = Architecture(trunk=masked, head=DiffusionHead(width=384, depth=3, batch_mul=2), patch_size=2)
    sampling = Sampling(
        ar_steps=16, diffusion_steps=DiffusionSteps(first=50, last=50), max_timestep=YOUNG_MAX_TIMESTEP, cfg_scale=48.0,
    )  # fmt: skip
    return Recipe(
        name="cifar10-32",
        images=ImageFiles(num_classes=10),
        tokenizer=FitTokenizer(channels=8, width=48, train_steps=1000),
        tokenize=Tokenize(image_size=32, batch_size=64),
        train=Train(
            model=model, train_steps=4200, batch_size=64, lr=1e-3, lr_schedule="cosine", warmup_steps=300,
            ema_decay=0.998, precision="fp32",  # a processor without bf16 instructions takes 25 times as long
            checkpoint_every=500,
        ),
        reference=Reference(features=Features(name="cifar-resnet-56"), images=5000),
        evaluate=Evaluate(
            generate=Generate(images=500, sampling=sampling), classifier=Classifier(name="cifar-resnet-56")
        ),
        tune=SamplingSweep(
            temperature=(), cfg_scale=(12.0, 20.0, 32.0, 48.0, 72.0), ar_steps=(), images=500, finalists=0
        ),
    )  # fmt: skip


def _table1(row: str, loss: str) -> Callable[[], Recipe]:
    """Return a recipe of Table 1 of Li et al. 2024: the same pictures, width, blocks, steps and batch in every row."""
    (comes_next, chosen, sampling), (head, process, told) = _ROWS[row], _LOSSES[loss]

    def recipe() -> Recipe:
        tokenizer = (FitVQTokenizer if head.draws == "codes" else FitTokenizer)(train_steps=1200)
        base = emoji_32()
        training = replace(base.train, model=Architecture(trunk=chosen, head=head), train_steps=1500, lr=1e-3)
        drawn = replace(base.evaluate.generate, sampling=replace(sampling, cfg_scale=1.5, **process))
        steps = (16, _TABLE_1_TOKENS) if isinstance(chosen, MaskedTrunk) else ()
        sweep = SamplingSweep(temperature=(), cfg_scale=(), ar_steps=steps, images=512, finalists=0)
        return replace(
            base, name=f"table1-{row}-{loss}", tokenizer=tokenizer, train=training, tune=sweep if steps else NoSweep(),
            evaluate=replace(base.evaluate, generate=drawn, ceiling=False),
        )  # fmt: skip

    recipe.__doc__ = f"""Table 1 of Li et al. 2024 on the demo's pictures: {comes_next}, {told}."""
    return recipe


_TABLE_1_TOKENS = 64
_STEPS = {"diffusion_steps": DiffusionSteps(first=30, last=30)}
_LOSSES: Mapping[str, tuple[Head, Mapping[str, Any], str]] = {
    "ce": (CategoricalHead(), {}, "cross-entropy on codes"),
    "diff": (DiffusionHead(width=256, batch_mul=2), {**_STEPS, "max_timestep": YOUNG_MAX_TIMESTEP}, "Diffusion Loss"),
    "flow": (FlowHead(width=256, batch_mul=2), _STEPS, "flow matching"),
    "gmm": (MixtureHead(), {}, "a mixture of Gaussians (GIVT)"),
    "l2": (RegressionHead(), {}, "squared error, a negative control"),
}
"""Head, its settings of sampling, and what it is called."""
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
    f"table1-{row}-{loss}": _table1(row, loss)
    for row in _ROWS
    for loss in (_LOSSES if row == "mar" else ("ce", "diff"))
}
"""table1-{raster, random, mar}-{ce, diff}, and table1-mar-{flow, gmm, l2}.

Of mar, the sweep draws both one token a step and many.
"""


def _raster(name: str, chosen: Trunk, *, codes: bool) -> Callable[[], Recipe]:
    """Return a recipe on the demo's pictures, row by row: of sub-pixels at 16 px, or of a VQ-VAE's codes at 32 px."""

    def recipe() -> Recipe:
        base, head = emoji_32(), CategoricalHead() if codes else NadeHead(width=64)
        tokenizer = FitVQTokenizer(train_steps=1200) if codes else PretrainedTokenizer(kind="sub-pixels")
        size, tokens = (32, 64) if codes else (16, 256)
        training = replace(base.train, model=Architecture(trunk=chosen, head=head), train_steps=1200, lr=3e-3)
        drawn = replace(base.evaluate.generate, sampling=Sampling(ar_steps=tokens, order="raster"))
        return replace(
            base, name=name, tokenizer=tokenizer, tokenize=replace(base.tokenize, image_size=size), train=training,
            tune=NoSweep(), evaluate=replace(base.evaluate, generate=drawn, ceiling=False),
        )  # fmt: skip

    what = "a VQ-VAE's codes at 32 px: its prior" if codes else "sub-pixels at 16 px, R, G and B in order"
    recipe.__doc__ = f"""{_NETWORKS[chosen.kind]} on the demo's pictures, token by token in raster order, on {what}."""
    return recipe


_NETWORKS = {"pixelcnn": "Gated PixelCNN", "rnn": "Pixel RNN"}
_RASTER: Mapping[str, tuple[Trunk, bool]] = {
    "emoji-16-pixelcnn": (ConvolutionalTrunk(width=32, depth=8), False),
    "emoji-16-rnn": (RecurrentTrunk(width=256, depth=1), False),
    "emoji-32-vq-pixelcnn": (ConvolutionalTrunk(width=64, depth=8), True),
    "emoji-32-vq-rnn": (RecurrentTrunk(width=256, depth=1), True),
}
RASTER = {name: _raster(name, chosen, codes=codes) for name, (chosen, codes) in _RASTER.items()}
"""PixelCNN and pixel RNN on sub-pixels, and on codes."""


def own_images(path: str) -> Recipe:
    """Images at `path`, with KL-16 and MAR-B."""
    return replace(imagenet_256_mar_b(), name="own-images", images=ImageFiles(path=path))


def given_model(path: str) -> Recipe:
    """The trained model at `path`, measured against real images: nothing is trained."""
    return Recipe(name="given-model", checkpoint=path)


def given_images(path: str) -> Recipe:
    """Images at `path` that any code made, measured against real images: nothing is trained, and nothing drawn."""
    return Recipe(name="given-images", images=ImageFiles(heldout_share=0), samples=path)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "emoji-32": emoji_32,
    "emoji-32-var": emoji_32_var,
    "cifar10-32": cifar10_32,
    **TABLE_1,
    **RASTER,
    **PUBLISHED,
}
