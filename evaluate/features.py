"""uint8 images -> features, through torch-fidelity's extractors and two of our own: EfficientNet-Lite0, CIFAR's ResNet.

Distances on other features than Inception's are not comparable with published FID, and are never called so.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from evaluate.extractors import CIFAR_RESNET, INCEPTION, LITE0, NETWORKS
from evaluate.networks import Features
from infra.errors import InputError

_LITE0_INPUT = 224
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Classifier(FeatureExtractorBase):
    """An extractor that gives pooled features and class logits."""

    layer = ""

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        """Name the layers."""
        return (cls.layer, "logits")

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """Name the layer that torch-fidelity takes for a metric."""
        return "logits" if metric == "isc" else cls.layer

    @staticmethod
    def can_be_compiled() -> bool:
        """Tell torch-fidelity not to compile it."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> None:
        """Return nothing: it is not compiled."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen layers of uint8 images (B, 3, H, W), each (B, features) float32."""
        pooled, logits = self.layers(images)
        found = {self.layer: pooled, "logits": logits}
        return tuple(found[name] for name in self.features_list)

    def layers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features and logits of uint8 images (B, 3, H, W)."""
        raise NotImplementedError


class Lite0(_Classifier):
    """EfficientNet-Lite0, an ImageNet classifier: images are resized to 224 px, bicubic with antialiasing."""

    layer = "1280"

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite_pytorch import EfficientNet

        path = feature_extractor_weights_path or str(Features(name=LITE0).file)
        self.network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(requires_grad=False)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a processor

    def layers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features (B, 1280) and logits (B, 1000)."""
        size = (_LITE0_INPUT, _LITE0_INPUT)
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        scaled = ((resized.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = self.network.extract_features(scaled).mean((2, 3))
        return pooled, self.network._fc(pooled)


class CifarResNet(_Classifier):
    """ResNet-56 for CIFAR-10 (He et al. 2015, section 4.2): images of 32 px as they are, others resized to that."""

    layer = "64"

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        path = feature_extractor_weights_path or str(Features(name=CIFAR_RESNET).file)
        self.build()
        try:
            self.load_state_dict(load_file(path))
        except Exception as error:  # noqa: BLE001  safetensors and torch each raise their own
            raise InputError(f"{path}: not the weights of a CIFAR ResNet-56 ({str(error)[:200]})") from None

    def build(self) -> None:
        """Make the layers."""
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        for number, (inputs, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            blocks = [_Block(inputs if index == 0 else width, width) for index in range(9)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def layers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features (B, 64) and logits (B, 10)."""
        pixels = images.float() / 255
        if pixels.shape[-1] != 32:
            pixels = F.interpolate(pixels, size=(32, 32), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(of, device=images.device).view(3, 1, 1) for of in (_IMAGENET_MEAN, _IMAGENET_STD))
        hidden = F.relu(self.bn1(self.conv1((pixels - mean) / std)))
        pooled = self.layer3(self.layer2(self.layer1(hidden))).mean((2, 3))
        return pooled, self.linear(pooled)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which takes every second pixel and pads with zeros where widths grow."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride, self.grown = width // inputs, width - inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=self.stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grown // 2, self.grown // 2))
        return F.relu(hidden + shortcut)


class Extractor:
    """uint8 images -> features. One per process; float32, without TF32, whatever the device."""

    def __init__(self, features: Features) -> None:
        file, network = str(features.file), NETWORKS[features.name]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for name, kind in ((LITE0, Lite0), (CIFAR_RESNET, CifarResNet)):
            with contextlib.suppress(ValueError):  # registered in this process before
                register_feature_extractor(name, kind)
        if features.name in (INCEPTION, "vgg16"):
            torch.load(file, map_location="cpu", weights_only=True)  # torch-fidelity would run what a pickle holds
        self.has_logits = bool(network.logits)
        self.network = create_feature_extractor(
            features.name, [network.layer, *([network.logits] if self.has_logits else [])],
            cuda=self.device == "cuda", verbose=False,
            feature_extractor_weights_path=None if features.name.startswith("dinov2") else file,
        )  # fmt: skip

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return features float32 (N, D) of images uint8 (N, H, W, 3)."""
        return self.layers(images)[0]

    @torch.inference_mode()
    def layers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features (N, D) and class logits (N, classes), both float32, of images uint8 (N, H, W, 3).

        There are no columns of logits when the network is no classifier.
        """
        found, batch_size = [], 64 if self.device == "cuda" else 16  # a processor's cache holds few images' layers
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size].transpose(0, 3, 1, 2)))
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # its convolutions would take it
                layers = self.network(batch.to(self.device))
            found.append([layer.float().cpu().numpy() for layer in layers])
        features, *logits = (np.concatenate(of) for of in zip(*found, strict=True))
        return features, logits[0] if logits else np.empty((len(images), 0), np.float32)
