"""What training is: the part of a recipe that decides the weights."""

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from infra.errors import InputError
from infra.fingerprint import added, canonical, where
from train.models.config import Architecture, Model

if TYPE_CHECKING:  # it needs numpy
    from tokenize_jobs.tokens import TokenKind

StartWeights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a model is trained on latents."""

    model: Architecture = field(default_factory=Architecture)
    """The network; what data and tokenizer decide of it is not chosen here."""
    train_steps: int = 250_000
    """Gradient steps in all."""
    batch_size: int = 2048
    """Images in each gradient step, over all workers."""
    lr: float = 8e-4
    """Peak learning rate; the published rule is 1e-4 x batch_size / 256."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate after the warm-up: constant; falling as a cosine; or linear, falling after a twentieth of the
    steps, as in VAR."""
    last_lr: float = added(default=0.0)
    """Share of the peak learning rate that a falling one ends at."""
    warmup_steps: int = 62_500
    """Steps of linear warm-up: 100 epochs of ImageNet in the published recipe."""
    weight_decay: float = 0.02
    """AdamW's weight decay; biases, norms and the head have none."""
    grad_clip: float = 3.0
    """Largest L2 norm of the gradient."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights, which sampling uses, at each step."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast, with norms, the head's output and the loss in float32; on a processor attention too."""
    seed: int = 1
    """Seed of the initial weights, the order of the data and all draws."""
    start_from: str = where(default="")
    """Model to start from in place of random weights: a checkpoint's artifact, an imported model's directory, or
    models:/NAME@ALIAS. Content is part of the identity; another number of classes gets a new class embedding."""
    start_weights: StartWeights = added(default="ema")
    """Weights that are taken of the model to start from: averaged (ema) or raw."""
    max_skipped_steps: int = added(default=10)
    """Skipped steps in a row, whose gradients were not finite, that end the training."""
    micro_batch: int = added(default=0)
    """Images of a micro-batch, into which the batch is cut and whose dropout has draws of its own: a worker takes
    several one after the other, which needs less memory. 0: a worker's share of the batch is one."""
    activation_checkpointing: Literal["auto", "on", "off"] = where(default="auto")
    """Compute each block again in the backward pass, instead of keeping what is in it: on, off, or where a GPU's memory
    is too small for a micro-batch without it (auto)."""
    compile: bool = where(default=True)
    """Compile the trunk and the head's loss where training has GPUs."""
    checkpoint_every: int = where(default=1000)
    """Steps between checkpoints: what a killed run loses at most."""
    log_every: int = where(default=20)
    """Steps between lines of the log."""

    def on(self, kind: "TokenKind", num_classes: int) -> Model:
        """Return the model of this training on tokens of this kind."""
        from infra.from_json import from_json  # it needs cattrs: not for those who only train on a GPU

        chosen = canonical(self.model, identity=False)
        return from_json(json.dumps(chosen | kind.for_model() | {"num_classes": num_classes}), Model, "--train.model")

    def images_at_once(self, workers: int) -> int:
        """Return the images of a micro-batch, or of the share of one of so many workers."""
        return self.micro_batch or self.batch_size // workers

    @property
    def most_workers(self) -> int:
        """Return how many workers the batch can keep busy."""
        return self.batch_size // max(self.micro_batch, 1)

    def check_workers(self, workers: int, most: int = 0, gpus: float | None = None) -> None:
        """Raise InputError unless each of this many workers, or of up to `most`, has its part of the batch.

        And `gpus` of its own, where it is said how many: between two on one GPU nothing is exchanged (NCCL refuses it).
        """
        if gpus and gpus % 1 and max(workers, most) > 1:
            raise InputError(
                f"--compute.train.gpus {gpus:g}: {max(workers, most)} workers of one training cannot share a GPU; give "
                "each a whole one, or take one: --compute.train.workers 1"
            )
        if self.batch_size < 1 or self.micro_batch < 0 or (self.micro_batch and self.batch_size % self.micro_batch):
            raise InputError(
                f"--train.micro-batch {self.micro_batch} does not divide --train.batch-size {self.batch_size}"
            )
        if most and (most < max(workers, 1) or not self.micro_batch):
            raise InputError(
                f"--compute.train.most-workers {most}: no less than --compute.train.workers {workers}, and a batch in "
                "micro-batches (--train.micro-batch), whose draws do not depend on the workers"
            )
        if self.micro_batch and max(workers, most) > self.most_workers:
            raise InputError(
                f"--compute.train.workers {max(workers, most)}: --train.batch-size {self.batch_size} is "
                f"{self.most_workers} micro-batches of --train.micro-batch {self.micro_batch}; ask for no more workers "
                "than micro-batches"
            )
        if not self.micro_batch and self.batch_size % max(workers, 1):
            raise InputError(
                f"--train.batch-size {self.batch_size} is not a multiple of --compute.train.workers {workers}"
            )

    def check(self, model: Model) -> None:
        """Raise InputError unless the model fits the tokens that it is trained on, and there are steps to take."""
        for name in ("train_steps", "checkpoint_every", "log_every", "grad_clip", "max_skipped_steps"):
            if not getattr(self, name) > 0:  # NaN neither
                raise InputError(f"--train.{name.replace('_', '-')} {getattr(self, name)} must be above 0")
        for name in ("lr", "weight_decay", "last_lr", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--train.{name.replace('_', '-')} {getattr(self, name)} must be 0 or more")
        if not 0 <= self.ema_decay <= 1:
            raise InputError(f"--train.ema-decay {self.ema_decay} must be from 0 to 1")
        try:
            model.check()
        except ValueError as error:
            raise InputError(f"--train.model.{error}") from None
