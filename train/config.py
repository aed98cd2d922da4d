"""What training is: the part of a recipe that decides the weights."""

from dataclasses import dataclass, field
from typing import Literal

from infra.errors import InputError
from infra.fingerprint import where
from train.models.config import Model


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a model is trained on latents."""

    model: Model = field(default_factory=Model)
    """Its shape."""
    train_steps: int = 250_000
    """Gradient steps."""
    batch_size: int = 2048
    """Images in a step, over all workers."""
    lr: float = 8e-4
    """Peak learning rate; the published rule is 1e-4 x batch_size / 256."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""
    warmup_steps: int = 62_500
    """Steps of linear warm-up: 100 epochs of ImageNet in the published recipe."""
    weight_decay: float = 0.02
    """On matrices of the trunk."""
    grad_clip: float = 3.0
    """Largest L2 norm of the gradient."""
    ema_decay: float = 0.9999
    """Of the averaged weights, which sampling uses."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast, with norms, the head's output and the loss in float32."""
    seed: int = 1
    """Of initial weights, data order and draws."""
    checkpoint_every: int = where(default=1000)
    """Steps between checkpoints: what a killed run loses at most."""
    log_every: int = where(default=20)
    """Steps between lines of the log."""

    def check(self, latent_channels: int, latent_size: int, num_classes: int) -> None:
        """Raise InputError unless this model fits these latents."""
        self.check_shape()
        model = self.model
        if (model.latent_channels, model.latent_size) != (latent_channels, latent_size):
            raise InputError(
                f"--train.model takes {model.latent_channels} x {model.latent_size} x {model.latent_size} latents, but "
                f"the store holds {latent_channels} x {latent_size} x {latent_size}: set these sizes"
            )
        if num_classes > model.num_classes:
            raise InputError(
                f"--train.model.num-classes {model.num_classes}: the store has labels up to {num_classes - 1}"
            )

    def check_workers(self, workers: int) -> None:
        """Raise InputError unless the batch divides among this many workers."""
        if self.batch_size % max(workers, 1):
            raise InputError(
                f"--train.batch-size {self.batch_size} is not a multiple of --compute.train.workers {workers}"
            )

    def check_shape(self) -> None:
        """Raise InputError unless the model's own sizes fit together."""
        model = self.model
        if model.latent_size % model.patch_size:
            raise InputError(
                f"--train.model.patch-size {model.patch_size} does not divide latent-size {model.latent_size}"
            )
        for name in ("encoder", "decoder"):
            width, heads = getattr(model, f"{name}_width"), getattr(model, f"{name}_heads")
            if width % heads:
                raise InputError(f"--train.model.{name}-heads {heads} does not divide {name}-width {width}")
