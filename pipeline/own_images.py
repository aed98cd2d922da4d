"""Recipes for anybody's images: what they choose follows from the pictures and a named budget, by the rules here.

Pure functions: neither clock nor machine has a say, so that the same command means the same recipe everywhere.
docs/own-images.md has the rules in words.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from evaluate.config import YOUNG_MAX_TIMESTEP, DiffusionSteps, Evaluate, Generate, Reference, Sampling
from evaluate.networks import Features
from infra.errors import InputError
from pipeline.recipe import Recipe
from tokenize_jobs.config import Fit, FitTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.tokenizers import geometry
from train.config import Train
from train.models.config import Architecture, Model, trunk
from train.models.heads import CategoricalHead, DiffusionHead, Head, NadeHead
from train.models.tokens import Form
from tune.config import SamplingSweep

Budget = Literal["minutes", "hour", "day"]
SIZES: Mapping[str, int] = {"images-32": 32, "images-64": 64, "images-256": 256}
"""Pixels of a side, by the name of the recipe."""
_MOST_FITTED_SIZE = 128
"""Above it, a small autoencoder fitted on a processor is no good for photographs."""
_MOST_EPOCHS = 400  # as long as the published models are trained
_FEW_PICTURES, _FEW_PIXELS = 1000, 32


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
class Network:
    """A size of model, and how many pictures it takes for it to be worth while."""

    pictures: int
    width: int
    depth: int
    """Blocks in the encoder, and in the decoder."""
    heads: int
    head_width: int
    lr: float

    def operations(self, tokens: int, batch: int) -> float:
        """Return the operations of a training step: 6 a weight and row, 12 w^2 weights a block, 5 w^2 of the head."""
        blocks = 12 * self.width**2 * 2 * self.depth * (tokens + _buffer(tokens))
        return 6.0 * batch * (blocks + 5 * self.head_width**2 * _HEAD_DEPTH * tokens * _BATCH_MUL)


_HEAD_DEPTH, _BATCH_MUL = 3, 2
NETWORKS = (
    Network(0, 160, 4, 4, 256, 2e-3),
    Network(_FEW_PICTURES, 256, 4, 4, 384, 1e-3),
    Network(5_000, 384, 6, 6, 512, 6e-4),
    Network(20_000, 512, 8, 8, 768, 4e-4),
    Network(100_000, 768, 12, 12, 1024, 2e-4),
)
"""By size; the last one's trunk is MAR-B's."""
_HEADS: Mapping[Form, Callable[[Network], Head]] = {
    "continuous tokens": lambda of: DiffusionHead(width=of.head_width, depth=_HEAD_DEPTH, batch_mul=_BATCH_MUL),
    "codes": lambda _: CategoricalHead(),
    "sub-pixels": lambda _: NadeHead(),
}
"""What draws the tokens that the tokenizer makes."""


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
    """Scales that the sweep tries, the middle one the recipe's own; a young model wants several times a done one's."""


_YOUNG, _GROWN = (1.5, 5.0, 15.0), (1.5, 4.0, 10.0)
_PROCESSOR: Mapping[Budget, Effort] = {
    "minutes": Effort(2.5e13, 0, 16, FitTokenizer(width=32, batch_size=32, train_steps=600), 250, 100, _YOUNG),
    "hour": Effort(2.4e14, 1, 16, FitTokenizer(width=64, batch_size=32, train_steps=1500), 500, 200, _YOUNG),
    "day": Effort(6e15, 2, 64, FitTokenizer(width=96, batch_size=64, train_steps=8000), 2000, 500, _GROWN),
}
"""For two cores of a processor at 1e11 operations a second, in float32."""
_GPU: Mapping[Budget, Effort] = {
    "minutes": Effort(1e16, 2, 64, FitTokenizer(width=96), 1000, 250, _GROWN),
    "hour": Effort(1e17, 3, 256, FitTokenizer(width=96), 5000, 1000, (2.0, 4.0, 8.0)),
    "day": Effort(3e18, 4, 256, FitTokenizer(width=96), 10_000, 2000, (1.5, 3.0, 5.0)),
}
"""For one GPU at 5e13 operations a second, in bf16."""


def sketch(name: str) -> Recipe:
    """Return the recipe before anything is known of the pictures: what a flag can be set on."""
    size = SIZES[name]
    # 8 channels train better models at 32 px; at 64 px, where they compress 24:1, they were not tried
    fitted = FitTokenizer(stride=8) if size > _FEW_PIXELS else FitTokenizer(stride=4, channels=8)
    tokenizer = fitted if size <= _MOST_FITTED_SIZE else PretrainedTokenizer()
    return Recipe(
        name=name, tokenizer=tokenizer, tokenize=Tokenize(image_size=size), tune=SamplingSweep(),
        evaluate=Evaluate(ceiling=True),  # as the rules choose it: a flag of a bool is named after its default
    )  # fmt: skip


def own_recipe(begun: Recipe, budget: Budget, seen: Seen) -> Recipe:
    """Return the whole recipe of one that says only which pictures, which tokenizer and which size.

    Raises InputError when a tokenizer is needed and not given, where its stride does not divide the size, and where one
    token alone would be left.
    """
    size = begun.tokenize.image_size
    if isinstance(begun.tokenizer, PretrainedTokenizer) and not begun.tokenizer.is_whole:
        raise InputError(
            f"{begun.name}: give the tokenizer, --tokenizer kl16:FILE, diffusers:FOLDER or taef2:FOLDER; a small one "
            f"fitted on the pictures is no good for photographs of {size} pixels (--tokenizer fit takes one all the "
            "same)"
        )
    effort = effort_of(size, budget)
    tokenizer = begun.tokenizer
    if isinstance(tokenizer, Fit):
        fit = effort.fit
        tokenizer = replace(tokenizer, width=fit.width, batch_size=fit.batch_size, train_steps=fit.train_steps)
    made, network = _made(tokenizer, size), network_of(effort, seen)
    head = _HEADS[made.tokens.form](network)
    patch, tokens = (1, made.latent_size**2) if made.tokens.form == "codes" else _patch(made.latent_size, effort.tokens)
    if tokens == 1:
        stride, larger = size // made.latent_size, made.latent_size + 1
        while _patch(larger, effort.tokens)[1] == 1:
            larger += 1
        raise InputError(
            f"--tokenize.image-size {size}: at the tokenizer's stride of {stride} one token alone would be left of a "
            f"picture, and nothing to predict from it. Take {larger * stride}, or a tokenizer of another stride "
            "(--tokenizer.stride)."
        )
    conditional = seen.classes > 1
    return replace(
        begun,
        tokenizer=tokenizer,
        tokenize=replace(begun.tokenize, batch_size=64 if size < _MOST_FITTED_SIZE else 32),
        train=_training(network, head, effort, seen, patch, tokens, precision_of(size), conditional=conditional),
        reference=Reference(
            features=Features(name="efficientnet-lite0"),
            images=0 if seen.rounded <= 10 * effort.images else 10 * effort.images,
        ),
        evaluate=Evaluate(
            generate=Generate(
                images=effort.images,
                sampling=_sampling(head, tokens, precision_of(size), effort.guidance[1] if conditional else 1.0),
            ),
            ceiling=True,
        ),
        tune=_sweep(effort, conditional=conditional),
    )


def effort_of(size: int, budget: Budget) -> Effort:
    """Return what a budget buys for pictures of this size: on a processor, or above 128 px on a GPU."""
    return (_PROCESSOR if size <= _MOST_FITTED_SIZE else _GPU)[budget]


def precision_of(size: int) -> Literal["fp32", "bf16"]:
    """Return what the recipe computes in: few processors compute in bf16."""
    return "fp32" if size <= _MOST_FITTED_SIZE else "bf16"


def network_of(effort: Effort, seen: Seen) -> Network:
    """Return the largest network that the budget buys and that the pictures are enough for."""
    return [network for network in NETWORKS[: effort.largest + 1] if network.pictures <= seen.rounded][-1]


def _made(tokenizer: PretrainedTokenizer | Fit, size: int) -> Model:
    """Return any model on what the tokenizer makes of an image: it tells size and form of the tokens."""
    return Train().on(geometry(tokenizer).of_image(size), 1)


def _patch(side: int, most_tokens: int) -> tuple[int, int]:
    """Return the smallest patch that leaves no more than so many tokens, and how many it leaves."""
    fitting = (patch for patch in range(1, side + 1) if side % patch == 0 and (side // patch) ** 2 <= most_tokens)
    patch = next(fitting)
    return patch, (side // patch) ** 2


def _buffer(tokens: int) -> int:
    return max(2, min(64, tokens // 4))


def _training(
    network: Network, head: Head, effort: Effort, seen: Seen, patch: int, tokens: int,
    precision: Literal["fp32", "bf16"], *, conditional: bool,
) -> Train:  # fmt: skip
    batch = 16 if seen.rounded < _FEW_PICTURES else 64 if seen.rounded < 20 * _FEW_PICTURES else 128
    affordable = effort.operations / network.operations(tokens, batch)
    steps = max(200, _two_digits(min(affordable, _MOST_EPOCHS * seen.rounded / batch)))
    masked = replace(
        trunk(network.width, network.depth, network.heads), buffer_size=_buffer(tokens),
        dropout=0.1 if network.width >= NETWORKS[2].width else 0.0,
        mask_ratio_min=0.7 if tokens > 16 else 0.5,  # of few tokens, 0.7 would leave almost none to see
    )  # fmt: skip
    return Train(
        model=Architecture(trunk=masked, head=head, patch_size=patch, label_drop=0.1 if conditional else 0.0),
        train_steps=steps, batch_size=batch, lr=network.lr, lr_schedule="cosine", warmup_steps=max(50, steps // 20),
        ema_decay=min(0.9999, round(1 - 12 / steps, 4)), precision=precision, checkpoint_every=250,
    )  # fmt: skip


def _two_digits(number: float) -> int:
    """Round down to two digits: numbers a person remembers."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit


def _sampling(head: Head, tokens: int, precision: Literal["fp32", "bf16"], cfg_scale: float) -> Sampling:
    return Sampling(
        ar_steps=min(tokens, 64), diffusion_steps=DiffusionSteps(first=50, last=50), cfg_scale=cfg_scale,
        max_timestep=YOUNG_MAX_TIMESTEP if isinstance(head, DiffusionHead) else None, precision=precision,
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
    network = network_of(effort, seen)
    where = "two cores of a processor" if size <= _MOST_FITTED_SIZE else "one GPU"
    tokens, head = (_made(tokenizer, size).latent_size // train.model.patch_size) ** 2, train.model.head
    epochs = train.train_steps * train.batch_size / max(seen.images, 1)
    larger = NETWORKS[effort.largest]
    few = f"; the budget's {larger.width} takes {larger.pictures:,} pictures" if larger != network else ""
    made = "as given"
    if isinstance(tokenizer, Fit):
        made = f"fitted in {tokenizer.train_steps:,} steps, stride {tokenizer.stride}"
    return [
        f"budget {budget}: {effort.operations:.2g} operations of training, counted for {where}",
        f"tokenizer: {made}, {tokens} tokens of {train.model.patch_size} x {train.model.patch_size} latents",
        f"model: trunk {network.width} wide, {network.depth} + {network.depth} blocks, {head.kind} head"
        f"{f' {head.width}' if hasattr(head, 'width') else ''}{few}",
        f"training: {train.train_steps:,} steps of {train.batch_size}, {epochs:,.0f} epochs, {train.precision}",
    ]
