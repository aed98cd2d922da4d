"""A model of the least size with every weight random, for tests of properties that hold for any weights."""

from dataclasses import replace

import torch

from train.card import ModelCard
from train.checkpoint import write_model
from train.config import Train
from train.ema import EMA
from train.models.build import build_model
from train.models.config import Architecture, trunk
from train.models.heads import CategoricalHead, DiffusionHead, FlowHead, NadeHead
from train.models.tokens import CodeTokens, SubPixelTokens
from train.models.trunks import CausalTrunk, ConvolutionalTrunk, RecurrentTrunk
from train.optimizer import Optimization
from train.step import training_step

HEADS = {"diffusion": DiffusionHead(width=32, depth=2), "flow": FlowHead(width=32, depth=2)}


STILL = Train(lr=0.0, warmup_steps=0, grad_clip=float("inf"), precision="fp32")


def step_loss(model, inputs, network=None, config=STILL):
    """The loss of a training step that leaves the weights where they are, and its gradients in `model`."""
    return training_step(model, network or model, EMA(model, 0.9), Optimization(model, config), [inputs])["loss"]


CAUSAL = CausalTrunk(buffer_size=8, width=32, depth=4, heads=4, dropout=0.0)
TRUNKS = {
    "masked": replace(trunk(32, 2, 4), buffer_size=8, dropout=0.0),
    "random-causal": CAUSAL,
    "raster-causal": replace(CAUSAL, order="raster"),
    "pixelcnn": ConvolutionalTrunk(width=32, depth=3),
    "rnn": RecurrentTrunk(width=32, depth=2),
}


def small(generation="masked", kind="diffusion", **changes):
    return Architecture(trunk=TRUNKS[generation], head=HEADS[kind], **changes).on(
        latent_size=4, latent_channels=3, num_classes=5
    )


def randomised(config, seed=0):
    """A model with every weight random, so that nothing is hidden by a zero initialisation."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def small_of_codes(generation="masked", codes=11, **changes):
    return Architecture(trunk=TRUNKS[generation], head=CategoricalHead(), **changes).on(
        latent_size=4, latent_channels=1, num_classes=5, tokens=CodeTokens(codebook_size=codes)
    )


def small_of_sub_pixels(generation="masked", **changes):
    return Architecture(trunk=TRUNKS[generation], head=NadeHead(width=16), **changes).on(
        latent_size=4, latent_channels=3, num_classes=5, tokens=SubPixelTokens()
    )


ORDER_OF = {
    "masked": "random", "random-causal": "random", "raster-causal": "raster", "pixelcnn": "raster", "rnn": "raster",
}  # fmt: skip


def written(folder, config):
    """A model directory with random weights, of pixels as its latents; returns its path."""
    card = ModelCard(
        model=config, latent_scale=1.0, classes=tuple("abcde"), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    weights = randomised(config).state_dict()
    write_model(folder, card, weights, weights)
    return str(folder)
