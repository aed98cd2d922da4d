"""Builds the model that a config describes."""

from train.models.autoregressor import Autoregressor
from train.models.config import Model


def build_model(config: Model) -> Autoregressor:
    """Return a freshly initialised model."""
    return config.trunk.build(config)
