"""Builds the model that a shape describes."""

from train.models.autoregressor import Autoregressor
from train.models.causal import CausalAR
from train.models.config import Model
from train.models.mar import MAR

GENERATIONS = {"masked": MAR, "random-causal": CausalAR, "raster-causal": CausalAR}


def build_model(config: Model) -> Autoregressor:
    """Return a freshly initialised model of this shape."""
    return GENERATIONS[config.generation](config)
