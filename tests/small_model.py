"""A model of the least size with every weight random, for tests of properties that hold for any weights."""

from dataclasses import replace

import torch

from train.models.build import build_model
from train.models.config import tiny
from train.models.heads import DiffusionHead, FlowHead

HEADS = {"diffusion": DiffusionHead(width=32, depth=2), "flow": FlowHead(width=32, depth=2)}


def small(generation="masked", kind="diffusion", **changes):
    shape = replace(tiny(32, 2, 4, 32, 2), generation=generation)
    shape = replace(shape, head=HEADS[kind], **changes)
    return shape.on(latent_size=4, latent_channels=3, num_classes=5)


def randomised(config, seed=0):
    """A model with every weight random, so that nothing is hidden by a zero initialisation."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


ORDER_OF = {"masked": "random", "random-causal": "random", "raster-causal": "raster"}
