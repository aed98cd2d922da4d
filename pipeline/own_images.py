"""Recipes for anybody's images: what they choose follows from the pictures and a named budget, by the rules here.

Pure functions: neither clock nor machine has a say, so that the same command means the same recipe everywhere.
docs/own-images.md has the rules in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from evaluate.config import YOUNG_MAX_TIMESTEP, DiffusionSteps, Evaluate, Generate, Reference, Sampling
from evaluate.networks import Features
from infra.errors import InputError
from pipeline.own_models import NETWORKS, Cut, architecture, network_of
from pipeline.recipe import Recipe
from tokenize_jobs.config import Fit, FitAutoencoder, FitPCATokenizer, FitTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.tokenizers import geometry
from train.config import Train
from tune.config import SamplingSweep

Budget = Literal["minutes", "hour", "day"]
Precision = Literal["fp32", "bf16"]
SIZES: Mapping[str, int] = {"images-32": 32, "images-64": 64, "images-256": 256}
"""Pixels of a side, by the name of the recipe."""
_MOST_FITTED_SIZE = 128
"""Above it, a small tokenizer fitted on a processor is no good for photographs."""
_MOST_EPOCHS = 400  # as long as the published models are trained
_FEW_PIXELS = 32
_BATCHES = ((0, 16), (1000, 32), (5000, 64), (20_000, 128))
"""From so many pictures on, so many in a step."""


@dataclass(frozen=True)
class Seen:
    """What the rules know of the pictures."""

    images: int
    classes: int

    @property
    def rounded(self) -> int:
        """The number of pictures to two digits: that of tars is estimated."""
        return int(float(f"{self.images:.1e}"))


@dataclass(frozen=True)
class Effort:
    """What a budget buys."""

    operations: float
    """Of the training."""
    largest: int
    """Place of the largest network among NETWORKS."""
    tokens: int
    """Most tokens of an image."""
    fit: FitTokenizer
    """Whose width, batch size and steps are taken."""
    images: int
    """Drawn for the evaluation."""
    trial_images: int
    guidance: tuple[float, float, float]
    """Scales that the sweep tries, the middle one the recipe's own."""


_CFG_SCHEDULES: Mapping[str, Literal["linear", "steps", "constant"]] = {
    "any order": "linear", "row by row": "constant", "scale by scale": "steps",
}  # fmt: skip
_YOUNG, _GROWN = (2.0, 4.0, 8.0), (1.5, 4.0, 10.0)
_PROCESSOR: Mapping[Budget, Effort] = {
    "minutes": Effort(2.5e13, 0, 16, FitTokenizer(width=32, batch_size=32, train_steps=600), 250, 100, _YOUNG),
    "hour": Effort(3.4e14, 1, 16, FitTokenizer(width=64, batch_size=32, train_steps=1500), 500, 200, _YOUNG),
    "day": Effort(6e15, 2, 64, FitTokenizer(width=96, batch_size=64, train_steps=8000), 2000, 500, _GROWN),
}
"""For two cores of a processor at 1e11 operations a second, in float32."""
_GPU: Mapping[Budget, Effort] = {
    "minutes": Effort(1e16, 2, 64, FitTokenizer(width=96), 1000, 250, _GROWN),
    "hour": Effort(1e17, 3, 256, FitTokenizer(width=96), 5000, 1000, _YOUNG),
    "day": Effort(3e18, 4, 256, FitTokenizer(width=96), 10_000, 2000, (1.5, 3.0, 5.0)),
}
"""For one GPU at 5e13 operations a second, in bf16."""


def sketch(name: str) -> Recipe:
    """Return the recipe before anything is known of the pictures: what a flag can be set on."""
    size = SIZES[name]
    fitted = FitPCATokenizer() if size > _FEW_PIXELS else FitTokenizer(stride=4, channels=8)
    tokenizer = fitted if size <= _MOST_FITTED_SIZE else PretrainedTokenizer()
    return Recipe(
        name=name, tokenizer=tokenizer, tokenize=Tokenize(image_size=size), tune=SamplingSweep(),
        evaluate=Evaluate(ceiling=True),  # as the rules choose it: a flag of a bool is named after its default
    )  # fmt: skip


def own_recipe(begun: Recipe, budget: Budget, seen: Seen) -> Recipe:
    """Return the whole recipe of one that says only which pictures, which tokenizer and which size.

    Raises InputError when a tokenizer is needed and not given, where it does not fit the size, and where one token
    alone would be left.
    """
    size, tokenizer = begun.tokenize.image_size, begun.tokenizer
    if isinstance(tokenizer, Fit):
        tokenizer.check(size)
    if isinstance(tokenizer, PretrainedTokenizer) and not tokenizer.is_whole:
        raise InputError(
            f"{begun.name}: give the tokenizer, --tokenizer kl16:FILE, diffusers:FOLDER or taef2:FOLDER; a small one "
            f"fitted on the pictures is no good for photographs of {size} pixels (--tokenizer fit takes one all the "
            "same)"
        )
    effort = effort_of(size, budget)
    if isinstance(tokenizer, FitAutoencoder):
        fit = effort.fit
        tokenizer = replace(tokenizer, width=fit.width, batch_size=fit.batch_size, train_steps=fit.train_steps)
    cut = _cut(tokenizer, size, effort)
    conditional = seen.classes > 1
    return replace(
        begun,
        tokenizer=tokenizer,
        tokenize=replace(begun.tokenize, batch_size=64 if size < _MOST_FITTED_SIZE else 32),
        train=_training(effort, seen, cut, precision_of(size), conditional=conditional),
        reference=Reference(
            features=Features(name="efficientnet-lite0"),
            images=0 if seen.rounded <= 10 * effort.images else 10 * effort.images,
        ),
        evaluate=Evaluate(
            generate=Generate(
                images=effort.images,
                sampling=_sampling(cut, precision_of(size), effort.guidance[1] if conditional else 1.0),
            ),
            ceiling=True,
        ),
        tune=_sweep(effort, conditional=conditional),
    )


def effort_of(size: int, budget: Budget) -> Effort:
    """Return what a budget buys for pictures of this size: on a processor, or above 128 px on a GPU."""
    return (_PROCESSOR if size <= _MOST_FITTED_SIZE else _GPU)[budget]


def precision_of(size: int) -> Precision:
    """Return what the recipe computes in: few processors compute in bf16."""
    return "fp32" if size <= _MOST_FITTED_SIZE else "bf16"


def _cut(tokenizer: PretrainedTokenizer | Fit, size: int, effort: Effort) -> Cut:
    made = Train().on(geometry(tokenizer).of_image(size), 1)  # any model on it tells size and form of the tokens
    return Cut.of(made, effort.tokens, size)


def _training(effort: Effort, seen: Seen, cut: Cut, precision: Precision, *, conditional: bool) -> Train:
    network = network_of(effort.largest, seen.rounded)
    batch = [size for pictures, size in _BATCHES if pictures <= seen.rounded][-1]
    affordable = effort.operations / network.operations(cut, batch)
    steps = max(200, _two_digits(min(affordable, _MOST_EPOCHS * seen.rounded / batch)))
    return Train(
        model=architecture(network, cut, conditional=conditional), train_steps=steps, batch_size=batch, lr=network.lr,
        lr_schedule="cosine", warmup_steps=max(50, steps // 20), ema_decay=min(0.9999, round(1 - 12 / steps, 4)),
        precision=precision, checkpoint_every=250,
    )  # fmt: skip


def _two_digits(number: float) -> int:
    """Round down to two digits: numbers a person remembers."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit


def _sampling(cut: Cut, precision: Precision, cfg_scale: float) -> Sampling:
    return Sampling(
        order="random" if cut.order == "any order" else "raster", cfg_schedule=_CFG_SCHEDULES[cut.order],
        ar_steps=cut.scales or min(cut.tokens, 64), diffusion_steps=DiffusionSteps(first=50, last=50),
        cfg_scale=cfg_scale, max_timestep=YOUNG_MAX_TIMESTEP if cut.form == "continuous tokens" else None,
        precision=precision,
    )  # fmt: skip


def _sweep(effort: Effort, *, conditional: bool) -> SamplingSweep:
    """Search guidance where there are classes to guide to, and else the temperature."""
    guided, alone = {"cfg_scale": effort.guidance}, {"temperature": (0.9, 0.95, 1.0), "cfg_scale": ()}
    axes = {"temperature": (), "ar_steps": (), **(guided if conditional else alone)}
    return SamplingSweep(**axes, widen=2, images=effort.trial_images, finalists=0)


def told(recipe: Recipe, budget: Budget, seen: Seen) -> list[str]:
    """Return what the rules chose and why, in lines for a person. What flags said later is not in it."""
    size, train = recipe.tokenize.image_size, recipe.train
    effort, tokenizer = effort_of(size, budget), recipe.tokenizer
    network, cut = network_of(effort.largest, seen.rounded), _cut(tokenizer, size, effort)
    where = "two cores of a processor" if size <= _MOST_FITTED_SIZE else "one GPU"
    head = train.model.head
    epochs = train.train_steps * train.batch_size / max(seen.images, 1)
    larger = NETWORKS[effort.largest]
    few = f"; the budget's {larger.width} takes {larger.pictures:,} pictures" if larger != network else ""
    made = "as given"
    if isinstance(tokenizer, FitAutoencoder):
        made = f"fitted in {tokenizer.train_steps:,} steps, stride {tokenizer.stride}"
    elif isinstance(tokenizer, Fit):
        made = f"principal components, stride {tokenizer.stride}"
    return [
        f"budget {budget}: {effort.operations:.2g} operations of training, counted for {where}",
        f"tokenizer: {made}, {cut.tokens} tokens of {cut.patch} x {cut.patch} latents",
        f"model: {cut.order}, trunk {network.width} wide, {2 * network.depth} blocks, {head.kind} head"
        f"{f' {head.width}' if hasattr(head, 'width') else ''}{few}",
        f"training: {train.train_steps:,} steps of {train.batch_size}, {epochs:,.0f} epochs, {train.precision}",
    ]
