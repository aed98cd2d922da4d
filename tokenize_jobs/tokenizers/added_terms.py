"""What a fit may add to its loss: a perceptual distance, and a discriminator's judgement (Esser et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tokenize_jobs.config import FitAutoencoder, FitQuantizing
from tokenize_jobs.tokenizers.adversary import Adversary
from tokenize_jobs.tokenizers.lpips import LPIPS


@dataclass(frozen=True)
class Added:
    """The terms that a config asks for, none of most."""

    perceptual: LPIPS | None = None
    perceptual_weight: float = 0.0
    adversary: Adversary | None = None
    adversary_weight: float = 0.0
    begin: float = 0.0
    """Step from which the adversary is heard."""

    @classmethod
    def of(cls, config: FitAutoencoder, device: str) -> "Added":
        """Return the terms of a fit, those with weight 0 left out."""
        if not isinstance(config, FitQuantizing):
            return cls()
        return cls(
            LPIPS(None, Path(config.vgg16)).to(device) if config.perceptual else None, config.perceptual,
            Adversary(config.lr / 10, device) if config.adversarial else None, config.adversarial,
            config.adversarial_from * config.train_steps,
        )  # fmt: skip

    @property
    def parts(self) -> tuple[object, ...]:
        """What a fit that goes on must have of them."""
        return () if self.adversary is None else (self.adversary.network, self.adversary.optimizer)

    def loss(self, step: int, images: Tensor, decoded: Tensor, reconstruction: Tensor, last: nn.Parameter) -> Tensor:
        """Return what they add to the loss of images (B, 3, H, W) in [-1, 1], of which `reconstruction` is the rest."""
        added = reconstruction.new_zeros(())
        if self.perceptual is not None:
            added = added + self.perceptual_weight * self.perceptual(images, decoded).mean()
        if self.adversary is not None and step >= self.begin:
            judged = self.adversary.term(decoded, reconstruction + added, last)
            added = added + self.adversary_weight * judged
        return added

    def learn(self, step: int, images: Tensor, decoded: Tensor) -> None:
        """Let the adversary learn from the step."""
        if self.adversary is not None and step >= self.begin:
            self.adversary.learn(images, decoded)
