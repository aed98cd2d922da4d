"""The learned perceptual distance of images (Zhang et al. 2018), by files that are given."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import InputError

_LAYERS = {4: 64, 9: 128, 16: 256, 23: 512, 30: 512}  # where VGG-16 is tapped -> channels
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of its input in [-1, 1]


class LPIPS(nn.Module):
    """Distance on VGG-16's features, version 0.1; without `layers`, all channels of a feature map weigh the same."""

    def __init__(self, layers: Path | None, vgg16: Path) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        try:
            self.linear = [torch.full((1, channels, 1, 1), 1.0) for channels in _LAYERS.values()]
            if layers is not None:
                linear = torch.load(layers, map_location="cpu", weights_only=True)
                self.linear = [linear[f"lin{place}.model.1.weight"] for place in range(len(_LAYERS))]
            weights = torch.load(vgg16, map_location="cpu", weights_only=True)
            self.features = make_layers(cfgs["D"])
            prefix = "features."
            self.features.load_state_dict(
                {name.removeprefix(prefix): of for name, of in weights.items() if name.startswith(prefix)}
            )
        except Exception as error:  # noqa: BLE001  torch raises anything on files that are none of its own
            files = " and ".join(str(file) for file in (layers, vgg16) if file is not None)
            raise InputError(f"LPIPS: {files} are not its weights ({str(error)[:200]})") from None
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance (N,) of images (N, 3, H, W) in [-1, 1]."""
        shift, scale = (torch.tensor(of, device=first.device)[:, None, None] for of in (_SHIFT, _SCALE))
        x, y = ((of - shift) / scale for of in (first, second))
        total = torch.zeros(len(x), device=x.device)
        for place, (after, weight) in enumerate(zip(_LAYERS, self.linear, strict=True)):
            before = ([0, *_LAYERS])[place]
            x, y = (self.features[before:after](of) for of in (x, y))
            difference = (_unit(x) - _unit(y)).square()
            total = total + F.conv2d(difference, weight.to(x.device)).mean((1, 2, 3))
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
