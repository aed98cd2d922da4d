"""CIFAR-10 on one GPU for some minutes, without Ray: what is drawn then, and how much of it a classifier knows.

    python -m benchmarks.cifar10 --store LATENTS --tokenizer TOKENIZER --classifier resnet56.safetensors

`LATENTS` and `TOKENIZER` are folders that `mar tokenize cifar10-32` made. Needs torch, numpy, safetensors, pyarrow,
pillow, universal-pathlib and cattrs, no Ray. The model is that of the recipe `cifar10-32`; its learning rate stays
after its warm-up, since nobody knows how many steps the time holds. Prints Markdown and leaves a grid of samples.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.machine import conditions
from evaluate.config import Sampling
from evaluate.grid import sample_grid
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.ahead import made_ahead
from infra.console import say
from pipeline.recipes import cifar10_32
from tokenize_jobs.store.reader import LatentStore
from tokenize_jobs.tokenizers import Tokenizer, load
from tokenize_jobs.tokenizers.pixels import to_uint8
from train.batches import StepInput, step_inputs
from train.checkpoint import new_model
from train.config import Train
from train.ema import EMA
from train.models.autoregressor import Autoregressor, compile_training
from train.models.config import Model
from train.optimizer import Optimization
from train.step import training_step

_LOOK_STEPS = {"cuda": 50, "cpu": 1}
"""Between two waits for the device, to look at the clock."""
_AT_ONCE = 250


def trained(
    store: LatentStore, shape: Model, config: Train, seconds: float, device: torch.device
) -> tuple[Autoregressor, int, float, float]:
    """Train for so many seconds, compiling among them; returns the averaged model, steps, their seconds, last loss."""
    model = new_model(shape, config.seed).to(device)
    ema, optimization, gpu = EMA(model, config.ema_decay), Optimization(model, config), device.type == "cuda"
    if gpu:
        compile_training(model)

    def inputs(step: int) -> list[StepInput]:
        made = step_inputs(store, shape, config, step)
        return [each.pinned() for each in made] if gpu else made

    began, steps, loss = time.monotonic(), 0, float("nan")
    with made_ahead(inputs, range(config.train_steps), 4) as ahead:
        for step, made in ahead:
            terms = training_step(model, model, ema, optimization, [each.to(device) for each in made])
            if (step + 1) % _LOOK_STEPS[device.type]:
                continue
            steps, loss = step + 1, terms["loss"].item()
            if time.monotonic() - began >= seconds:
                break
    return ema.model, steps, time.monotonic() - began, loss


def drawn(
    model: Autoregressor, tokenizer: Tokenizer, settings: Sampling, scale: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (count, H, W, 3) and their classes (count,), which take turns."""
    labels, images = np.arange(count) % model.config.num_classes, []
    for first in range(0, count, _AT_ONCE):
        chosen = range(first, min(first + _AT_ONCE, count))
        with torch.no_grad():
            latents = sample(model, torch.from_numpy(labels[first : chosen.stop]), ImageNoise(0, chosen), settings)
            images.append(to_uint8(tokenizer.decode(latents / scale)))
    return np.concatenate(images), labels


def class_logits(weights: Mapping[str, Tensor], images: np.ndarray) -> Tensor:
    """Return what a CIFAR ResNet (He et al. 2015, section 4.2) tells of images uint8 (B, 32, 32, 3): (B, classes)."""

    def convolved(x: Tensor, block: str, number: int, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{block}conv{number}.weight"], stride=stride, padding=1)
        mean, variance, scale, shift = (
            weights[f"{block}bn{number}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, scale, shift)

    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / deviation
    x = F.relu(convolved(x, "", 1))
    blocks = dict.fromkeys(name.split("conv")[0] for name in weights if name.startswith("layer") and "conv" in name)
    for block in sorted(blocks, key=lambda name: [int(part) for part in name.removeprefix("layer").split(".")[:2]]):
        grown = len(weights[f"{block}conv1.weight"]) - x.shape[1]
        stride = 2 if grown else 1
        hidden = convolved(F.relu(convolved(x, block, 1, stride)), block, 2)
        x = F.relu(hidden + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, grown // 2, grown // 2)))
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="latents of CIFAR-10")
    parser.add_argument("--tokenizer", default="", help="the tokenizer that made them; none for pixels")
    parser.add_argument("--classifier", required=True, help="weights of a CIFAR ResNet, as safetensors")
    parser.add_argument("--out", default=".", type=Path, help="folder of the grid")
    parser.add_argument("--seconds", default=360.0, type=float, help="how long to train")
    parser.add_argument("--images", default=1000, type=int, help="how many to draw")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 without a GPU."""
    asked, recipe = _asked(words), cifar10_32()
    if asked.device == "cuda" and not torch.cuda.is_available():
        say("no GPU: torch finds no CUDA device here, so there is nothing to measure")
        return 1
    store, weights, device = LatentStore(asked.store), load_file(asked.classifier), torch.device(asked.device)
    tokenizer = load(store.manifest["tokenizer"]["kind"], asked.tokenizer).to(asked.device)
    classes = store.manifest["classes"]
    shape = recipe.train.on(store.kind, len(classes))
    config = replace(
        recipe.train, lr_schedule="constant", train_steps=10**9,
        precision="bf16" if device.type == "cuda" else "fp32",
    )  # fmt: skip
    model, steps, seconds, loss = trained(store, shape, config, asked.seconds, device)
    chosen = recipe.evaluate.generate.sampling
    settings = replace(chosen, ar_steps=min(chosen.ar_steps, shape.num_tokens))
    images, labels = drawn(model, tokenizer, settings, store.latent_scale, asked.images)
    known = class_logits(weights, images).argmax(1).numpy() == labels
    sample_grid(lambda index: images[index], len(images), classes).save(asked.out / "cifar10.png")
    say(
        f"{conditions()}\n\n| cifar10-32 | steps | images/s | loss | class accuracy |\n|---|---|---|---|---|\n"
        f"| {seconds / 60:.1f} minutes, {config.precision} | {steps} | {steps * config.batch_size / seconds:.0f} "
        f"| {loss:.4f} | {known.mean():.1%} of {len(images)}, CFG {settings.cfg_scale:g} |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
