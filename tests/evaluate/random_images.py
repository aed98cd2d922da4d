"""Images and networks at random, for tests that hold for any."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluate.features import CifarResNet


def random_images(seed: int, count: int) -> np.ndarray:
    """Smooth colour blobs: closer to pictures than white noise."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])


def random_resnet(folder) -> str:
    """Write the weights of a CIFAR ResNet-56 at random, with norms that keep its features apart; return their path."""
    path = folder / "resnet56.safetensors"
    torch.manual_seed(0)
    with torch.device("cpu"):
        network = CifarResNet.__new__(CifarResNet)
        torch.nn.Module.__init__(network)
        network.build()
    save_file(network.state_dict(), path)
    return str(path)
