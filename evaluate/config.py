"""What sampling and evaluation are: the part of a recipe that decides images and numbers. Imports nothing heavy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evaluate.extractors import LPIPS_FILE, sha256, weights_file
from evaluate.networks import Classifier, Features
from infra.errors import InputError
from infra.fingerprint import added, file_at, where
from train.models.config import Model
from train.models.heads import DiffusionHead, FlowHead, Head, HeadSampling, Solver, TemperatureOn

YOUNG_MAX_TIMESTEP = 950
"""Where a Diffusion Loss head starts in recipes other than the published ones.

At t = 999 the first guess of x_0 multiplies the network's error by 20,000: hundreds of epochs make it small enough, and
a young model's samples are ruined by it; from 950 the factor is 13.
"""
Order = Literal["random", "raster", "halton", "gtr", "confidence"]


STEP_SHAPES: dict[str, Callable[[int, int, int, int], int]] = {
    "linear": lambda first, last, step, final: last + (final - step) * (first - last) // final if final else first,
    "two-stage": lambda first, last, step, final: first if step < final / 2 else last,
}
"""Diffusion steps at autoregressive step `step` of 0..final."""
CFG_SCHEDULES: dict[str, Callable[[float, float, int, int], float]] = {
    # the published schedule never counts less than one masked token, so it ends just below cfg_scale
    "linear": lambda scale, done, masked_after, length: 1 + (scale - 1) * (length - max(masked_after, 1)) / length,  # noqa: ARG005
    "steps": lambda scale, done, masked_after, length: 1 + (scale - 1) * done,  # noqa: ARG005
    "constant": lambda scale, done, masked_after, length: scale,  # noqa: ARG005
}
"""Guidance of a step, by the share of steps done before the last, and how many tokens are still masked after it."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSteps:
    """Diffusion steps of each autoregressive step: the step schedule. Equal ends make it constant."""

    first: int = 100
    """Diffusion steps in the first autoregressive step."""
    last: int = 100
    """Diffusion steps in the last one; fewer is faster, since late tokens are almost decided (DiSA, arXiv
    2505.20297)."""
    shape: Literal["linear", "two-stage"] = "linear"
    """From first to last linearly, or two-stage: first in the first half, then last."""

    def at(self, step: int, ar_steps: int) -> int:
        """Return the diffusion steps of autoregressive step `step` (0-based)."""
        return STEP_SHAPES[self.shape](self.first, self.last, step, ar_steps - 1)

    def label(self) -> str:
        """Return '100', or 'first..last' where they differ."""
        return f"{self.first}" if self.first == self.last else f"{self.first}..{self.last}"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn from a trained model."""

    ar_steps: int = 64
    """Autoregressive steps: rounds of revealing tokens."""
    diffusion_steps: DiffusionSteps = field(default_factory=DiffusionSteps)
    """Diffusion steps in each autoregressive step."""
    solver: Solver = "ancestral"
    """Solver that runs the head's process backwards: ancestral is DDPM's."""
    max_timestep: int | None = None
    """Start the diffusion at this timestep (0..999) instead of 999, as published; young models need 950."""
    temperature: float = 1.0
    """Scale of the noise in the diffusion steps; of heads that draw codes, what divides the logits."""
    temperature_on: TemperatureOn = added(default="noise")
    """noise: the temperature scales the noise added in each diffusion step; prediction: it divides the noise that the
    head predicts, which acts on every solver, and a little goes a long way."""
    top_k: int = added(default=0)
    """Draw among so many of the likeliest codes; 0 for all. Of heads that draw codes."""
    top_p: float = added(default=1.0)
    """Draw among the likeliest codes that hold this share of the probability. Of heads that draw codes."""
    cfg_scale: float = 1.0
    """Scale of classifier-free guidance; 1 is none, and costs half."""
    cfg_schedule: Literal["linear", "steps", "constant"] = "linear"
    """Guidance grows linearly with the share of revealed tokens; or with the steps, from none in the first, as in VAR,
    whose scale is one less than this one; or stays constant."""
    order: Order = "random"
    """Order in which the tokens are generated; confidence: the surest of the drawn ones first, as MaskGIT does."""
    choice_temperature: float = added(default=4.5)
    """Scale of the Gumbel noise on log confidences, in order confidence; it falls linearly to 0."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast, with norms and the head's output in float32."""
    decoder_precision: Literal["fp32", "bf16"] = added(default="fp32")
    """Precision in which the tokenizer decodes: bf16 is autocast."""

    @classmethod
    def of(cls, model: Model) -> "Sampling":
        """Return the settings of a model of which nothing else is known: its trunk's order and number of steps."""
        least, usual = model.trunk.least_steps(model.num_tokens, model.tokens.together), cls().ar_steps
        return cls(order=model.trunk.order, ar_steps=min(usual, model.num_tokens) if least == 1 else least)

    @property
    def precisions(self) -> str:
        """The precision of the model, and of the decoder where that is not fp32: a condition of what is measured."""
        return self.precision + (f", decoded in {self.decoder_precision}" if self.decoder_precision != "fp32" else "")

    def told(self, head: Head) -> str:
        """Say what of the settings counts for a model with this head: a head that runs no process has no steps."""
        denoises, of_logits = isinstance(head, DiffusionHead | FlowHead), head.draws != "continuous tokens"
        on = f"the {self.temperature_on}" if denoises else "the logits" if of_logits else "the deviations"
        parts = [
            f"{self.ar_steps} AR x {self.diffusion_steps.label()} diffusion steps" if denoises
            else f"{self.ar_steps} AR steps",
            f"CFG {self.cfg_scale} {self.cfg_schedule}",
        ]  # fmt: skip
        parts += [f"temperature {self.temperature} on {on}"] if denoises or head.has_density else []
        parts += [f"top-k {self.top_k}"] * bool(self.top_k) + [f"top-p {self.top_p:g}"] * (self.top_p != 1)
        return ", ".join(parts)

    def head_at(self, step: int) -> HeadSampling:
        """Return the head's settings in autoregressive step `step` (0-based)."""
        return HeadSampling(
            steps=self.diffusion_steps.at(step, self.ar_steps), solver=self.solver, temperature=self.temperature,
            temperature_on=self.temperature_on, max_timestep=self.max_timestep, top_k=self.top_k, top_p=self.top_p,
        )  # fmt: skip

    def choice_noise_at(self, step: int) -> float:
        """Return the scale of the noise on the confidence in autoregressive step `step` (0-based)."""
        return self.choice_temperature * (1 - (step + 1) / self.ar_steps)

    def cfg_at(self, step: int, masked_after: int, num_tokens: int) -> float:
        """Return the guidance of autoregressive step `step` (0-based), after which `masked_after` tokens are masked."""
        done = step / max(self.ar_steps - 1, 1)
        return CFG_SCHEDULES[self.cfg_schedule](self.cfg_scale, done, masked_after, num_tokens)

    def check(self, model: Model, kept: Sequence[bool] = ()) -> None:
        """Raise InputError for settings that this model cannot draw an image with.

        `kept` tells by position which tokens are given; none are when it is empty.
        """
        kept = tuple(kept) or (False,) * model.num_tokens
        for name in ("temperature", "cfg_scale", "choice_temperature"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name} is {value}; it must be a number, 0 or more")
        if self.cfg_scale != 1 and model.label_drop == 0:
            raise InputError(f"cfg_scale is {self.cfg_scale}, but the model was trained with label_drop 0: use 1")
        if self.order == "confidence" and not model.head.has_density:
            raise InputError(f"order is 'confidence', but a {model.head.kind} head cannot tell how likely a token is")
        try:
            model.trunk.check_sampling(self.order, self.ar_steps, kept, model.tokens.together)
            for step in (0, self.ar_steps - 1):
                model.head.check(self.head_at(step))
        except ValueError as error:
            raise InputError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Which images are drawn from a model."""

    sampling: Sampling = field(default_factory=Sampling)
    """How the images are drawn."""
    images: int = 50_000
    """Number of images; class labels take turns, so that classes are balanced."""
    seed: int = 0
    """Seed of the images; image i of a seed is the same whatever the batch size or the workers."""
    use_ema: bool = True
    """Draw with the averaged weights rather than the raw ones."""
    batch_size: int = where(default=64)
    """Images drawn at once, and the unit of work."""

    def check(self) -> None:
        """Raise InputError unless there are images to measure, some drawn at once."""
        for name, least in (("images", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--evaluate.generate.{name.replace('_', '-')} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The real images that generated ones are measured against."""

    features: Features = field(default_factory=Features)
    """The network whose features are compared."""
    images: int = 0
    """Number of real images, evenly from the shards; 0 for all."""
    path: str = where(default="")
    """What is measured against, in place of the images that are trained on: images, named as in --images.path; a latent
    store, for the images that it was made of; or ADM's .npz (arr_0 images; mu and sigma; or both)."""
    statistics: str = file_at(default="")
    """File with mean and covariance (mu, sigma) in place of those of the images, as ADM's adm_in256_stats.npz. Of what
    --reference.path names, features are kept for precision, recall, kernel distance and nearest images."""

    @property
    def statistics_digest(self) -> str:
        """sha256 of the file of statistics, 16 digits, or '' without one. Raises InputError when it is not there."""
        if self.statistics and not Path(self.statistics).is_file():
            raise InputError(f"--reference.statistics {self.statistics}: no such file")
        return sha256(Path(self.statistics))[:16] if self.statistics else ""

    @property
    def identity(self) -> dict[str, str]:
        """What it depends on beside fields and images: files that were given. Raises InputError without them."""
        return {**({"statistics": self.statistics_digest} if self.statistics else {}), **self.features.identity}


@dataclass(frozen=True, kw_only=True)
class DuringTraining:
    """Small evaluations of checkpoints while their training goes on; they decide nothing of what is made."""

    every: int = where(default=0)
    """Training steps between checkpoints that are measured, on a core or GPU beside the training; 0 for none."""
    images: int = where(default=500)
    """Images that are drawn of a checkpoint's averaged weights, and of its raw ones."""
    gpus: float = where(default=0.0)
    """GPU, or part of one, that measures checkpoints; training must leave it free. 0 takes a core."""

    def check(self) -> None:
        """Raise InputError unless there are images to measure."""
        for name, least in (("every", 0), ("images", 2), ("gpus", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--evaluate.meanwhile.{name} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How a checkpoint is measured."""

    generate: Generate = field(default_factory=Generate)
    """The images that are measured."""
    ceiling: bool = False
    """Measure the untrained model too, which costs as many images again."""
    classifier: Classifier = field(default_factory=Classifier)
    """The network that judges the classes of generated images."""
    keep: Literal["none", "grid", "all"] = "grid"
    """Generated images that are kept, as PNG in WebDataset shards: none, those of the sample grid, or all."""
    grid_columns: int = 10
    """Images of each class in the sample grid; classes beyond ten are left out."""
    meanwhile: DuringTraining = where(default_factory=DuringTraining)
    """What is measured of checkpoints while their training goes on."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How a tokenizer is measured: images encoded to the mean of their posterior, and decoded again."""

    images: int = 0
    """Number of real images to reconstruct, evenly from the shards; 0 for all."""
    lpips: str = file_at(default="")
    """File of LPIPS's linear layers for VGG-16, where that distance is wanted; --reconstruction.vgg16 goes with it."""
    vgg16: str = file_at(default="")
    """File of torchvision's vgg16-397923af.pth for LPIPS; empty takes it from where torch keeps downloads."""

    @property
    def lpips_files(self) -> tuple[Path, Path] | None:
        """The two files that LPIPS needs, or None without one. Raises InputError when they are not at hand."""
        if not self.lpips:
            return None
        if not (layers := Path(self.lpips)).is_file():
            raise InputError(f"--reconstruction.lpips {self.lpips}: no such file; get {LPIPS_FILE}")
        return layers, weights_file("vgg16", self.vgg16, "--reconstruction.vgg16")

    @property
    def lpips_digest(self) -> str:
        """The linear layers' sha256, 16 digits, or '' without LPIPS."""
        return sha256(files[0])[:16] if (files := self.lpips_files) else ""
