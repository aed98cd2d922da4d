"""The heads there are: what each takes, needs and refuses. The network of each is a module of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from train.models.tokens import Form

if TYPE_CHECKING:
    from train.models.head import TokenHead

TRAIN_TIMESTEPS = 1000
"""Steps of the Diffusion Loss's process, of which sampling takes some."""
Solver = Literal["ancestral", "ddim", "dpm-solver++"]
TemperatureOn = Literal["noise", "prediction"]


class Draw(NamedTuple):
    """Random numbers of one image in one training step: uniform in [0, 1), or standard normal."""

    law: Literal["uniform", "normal"]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class HeadSampling:
    """How one token is drawn from a head."""

    steps: int = 100
    """Network evaluations, before a start clip merges some."""
    solver: Solver = "ancestral"
    """ancestral: DDPM, or Euler-Maruyama for flow; ddim: deterministic, Euler for flow; dpm-solver++: second order."""
    temperature: float = 1.0
    """Scale of the noise added in each ancestral step; the initial noise is not scaled."""
    temperature_on: TemperatureOn = "noise"
    """noise: the temperature scales the noise added; prediction: it divides the predicted noise (diffusion only)."""
    max_timestep: int | None = None
    """Start at this timestep (0..999) instead of 999; lets 5-20 steps work (diffusion only)."""
    top_k: int = 0
    """Draw among so many of the likeliest codes; 0 for all (categorical only)."""
    top_p: float = 1.0
    """Draw among the likeliest codes that hold this share of the probability (categorical only)."""


@dataclass(frozen=True, kw_only=True)
class DiffusionHead:
    """The paper's Diffusion Loss: a small diffusion model of each token."""

    kind: Literal["diffusion"] = "diffusion"
    """The published Diffusion Loss: a small MLP that denoises one token at a time."""
    width: int = 1024
    """Channels of the head's MLP."""
    depth: int = 3
    """Residual blocks of the head's MLP."""
    batch_mul: int = 4
    """Draws of (timestep, noise) for each token in each training step (diffusion_batch_mul)."""
    variance: Literal["learned", "fixed"] = field(default="learned", metadata={"added": True})
    """learned: between beta and beta~, by the variational bound, as published; fixed: beta~, and the noise's squared
    error is the whole loss."""
    draws: ClassVar[Form] = "continuous tokens"
    has_density: ClassVar[bool] = False

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for tokens of so many channels, given conditions (N, condition_width)."""
        from train.models.diffloss import DiffusionLoss

        return DiffusionLoss(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:
        """Return what the loss of an image with so many tokens to predict draws, in this order."""
        times = self.batch_mul
        return {"uniform": Draw("uniform", (times, tokens)), "noise": Draw("normal", (times, tokens, channels))}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot draw tokens with."""
        if not 1 <= settings.steps <= TRAIN_TIMESTEPS:
            raise ValueError(f"diffusion_steps must be at least 1, and at most {TRAIN_TIMESTEPS}")
        if settings.max_timestep is not None and not 0 <= settings.max_timestep < TRAIN_TIMESTEPS:
            raise ValueError(f"max_timestep {settings.max_timestep} must be from 0 to {TRAIN_TIMESTEPS - 1}")
        if settings.temperature_on == "prediction" and settings.temperature <= 0:
            raise ValueError("temperature must be above 0 where it divides the predicted noise")
        _refuse_filters(settings, self.kind)


@dataclass(frozen=True, kw_only=True)
class FlowHead:
    """Flow matching on the MLP of the Diffusion Loss."""

    kind: Literal["flow"] = "flow"
    """Flow matching on the same MLP."""
    width: int = 1024
    """Channels of the head's MLP."""
    depth: int = 3
    """Residual blocks of the head's MLP."""
    batch_mul: int = 4
    """Draws of (time, noise) for each token in each training step."""
    draws: ClassVar[Form] = "continuous tokens"
    has_density: ClassVar[bool] = False
    solvers: ClassVar[tuple[Solver, ...]] = ("ancestral", "ddim")

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for tokens of so many channels, given conditions (N, condition_width)."""
        from train.models.flow import FlowLoss

        return FlowLoss(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:
        """Return what the loss of an image with so many tokens to predict draws, in this order."""
        times = self.batch_mul
        return {"uniform": Draw("uniform", (times, tokens)), "noise": Draw("normal", (times, tokens, channels))}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot draw tokens with."""
        if settings.steps < 1:
            raise ValueError("diffusion_steps must be at least 1")
        _refuse_tempered_prediction(settings, self.kind)
        _refuse_filters(settings, self.kind)
        if settings.solver not in self.solvers or settings.max_timestep is not None:
            raise ValueError(
                f"a flow head takes solver {' or '.join(map(repr, self.solvers))}, and no max_timestep (None)"
            )


@dataclass(frozen=True, kw_only=True)
class MixtureHead:
    """A mixture of diagonal Gaussians, as GIVT has it."""

    kind: Literal["mixture"] = "mixture"
    """A mixture of Gaussians for each token (GIVT, arXiv 2312.02116)."""
    components: int = 16
    """Gaussians in the mixture of a token."""
    draws: ClassVar[Form] = "continuous tokens"
    has_density: ClassVar[bool] = True

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for tokens of so many channels, given conditions (N, condition_width)."""
        from train.models.mixture import GaussianMixture

        return GaussianMixture(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:  # noqa: ARG002
        """Return nothing: the likelihood is exact."""
        return {}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot draw tokens with."""
        _refuse_process(settings, self.kind)
        _refuse_filters(settings, self.kind)


@dataclass(frozen=True, kw_only=True)
class CategoricalHead:
    """A probability for each code, trained by the cross-entropy."""

    kind: Literal["categorical"] = "categorical"
    """A probability for each code of a tokenizer that quantizes; the loss is the cross-entropy."""
    draws: ClassVar[Form] = "codes"
    has_density: ClassVar[bool] = True

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for `channels` codes, given conditions (N, condition_width)."""
        from train.models.categorical import Categorical

        return Categorical(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:  # noqa: ARG002
        """Return nothing: the likelihood is exact."""
        return {}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot draw tokens with."""
        _check_logits(settings, self.kind)


@dataclass(frozen=True, kw_only=True)
class NadeHead:
    """A probability for each value of each sub-pixel, given those before it in the token."""

    kind: Literal["nade"] = "nade"
    """Sub-pixels one after the other: R, then G given R, then B given both; the loss is the cross-entropy."""
    width: int = 128
    """Channels of the hidden layer that the sub-pixels share."""
    draws: ClassVar[Form] = "sub-pixels"
    has_density: ClassVar[bool] = True

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for tokens of so many sub-pixels, given conditions (N, condition_width)."""
        from train.models.nade import Nade

        return Nade(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:  # noqa: ARG002
        """Return nothing: the likelihood is exact."""
        return {}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot draw tokens with."""
        _check_logits(settings, self.kind)


@dataclass(frozen=True, kw_only=True)
class RegressionHead:
    """The squared error: no distribution, a negative control."""

    kind: Literal["regression"] = "regression"
    """The squared error: a prediction, nothing is drawn; the paper's negative control."""
    draws: ClassVar[Form] = "continuous tokens"
    has_density: ClassVar[bool] = False

    def build(self, channels: int, condition_width: int) -> "TokenHead":
        """Return the network for tokens of so many channels, given conditions (N, condition_width)."""
        from train.models.regression import Regression

        return Regression(self, channels, condition_width)

    def training_draws(self, tokens: int, channels: int) -> Mapping[str, Draw]:  # noqa: ARG002
        """Return nothing: a prediction needs no draws."""
        return {}

    def check(self, settings: HeadSampling) -> None:
        """Raise ValueError for settings that this head cannot predict tokens with."""
        _refuse_process(settings, self.kind)
        _refuse_filters(settings, self.kind)


def _check_logits(settings: HeadSampling, kind: str) -> None:
    _refuse_process(settings, kind)
    if settings.temperature <= 0:
        raise ValueError("temperature must be above 0, for it divides logits; top_k 1 takes the likeliest code")
    if settings.top_k < 0 or not 0 < settings.top_p <= 1:
        raise ValueError("top_k must be 0 or more, and top_p above 0 and at most 1")


def _refuse_process(settings: HeadSampling, kind: str) -> None:
    _refuse_tempered_prediction(settings, kind)
    if settings.solver != "ancestral" or settings.max_timestep is not None:
        raise ValueError(f"a {kind} head runs no process backwards: it takes solver 'ancestral', and no max_timestep")


def _refuse_filters(settings: HeadSampling, kind: str) -> None:
    if settings.top_k != 0 or settings.top_p != 1:
        raise ValueError(f"a {kind} head has no list of codes to choose among: top_k is 0 and top_p is 1")


def _refuse_tempered_prediction(settings: HeadSampling, kind: str) -> None:
    if settings.temperature_on == "prediction":
        raise ValueError(f"a {kind} head predicts no noise that a temperature could divide: temperature_on is 'noise'")


Head = DiffusionHead | FlowHead | MixtureHead | CategoricalHead | NadeHead | RegressionHead
