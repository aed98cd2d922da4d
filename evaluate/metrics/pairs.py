"""How near an image is to another of which it is a copy: PSNR, SSIM and, with its weights, LPIPS."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.errors import InputError

BEST_PSNR = 100.0
"""dB that images without any difference count as: their PSNR has no bound."""
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
_LPIPS_LAYERS = {4: 64, 9: 128, 16: 256, 23: 512, 30: 512}  # where VGG-16 is tapped -> channels
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of its input in [-1, 1]


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the PSNR (N,) in dB of images uint8 (N, H, W, 3), over all three channels; at most BEST_PSNR."""
    error = np.square(first.astype(np.float64) - second).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(255**2 / error), BEST_PSNR)


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the SSIM (N,) of images uint8 (N, H, W, 3), the mean of the channels' (Wang et al. 2004, eq. 13).

    A Gaussian window of 11 pixels, sigma 1.5, where it lies inside the image. Images smaller than it have none: NaN.
    """
    if min(first.shape[1:3]) < _WINDOW:
        return np.full(len(first), np.nan)
    at = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-at.square() / (2 * _SIGMA**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    x, y = (torch.from_numpy(of).permute(0, 3, 1, 2).double() for of in (first, second))

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, values.shape[:2])[:, :, 0]

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return found.mean((1, 2, 3)).numpy()


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG-16's features (Zhang et al. 2018), version 0.1."""

    def __init__(self, layers: Path, vgg16: Path) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        try:
            linear = torch.load(layers, map_location="cpu", weights_only=True)
            weights = torch.load(vgg16, map_location="cpu", weights_only=True)
            self.linear = [linear[f"lin{place}.model.1.weight"] for place in range(len(_LPIPS_LAYERS))]
            self.features = make_layers(cfgs["D"])
            prefix = "features."
            self.features.load_state_dict(
                {name.removeprefix(prefix): of for name, of in weights.items() if name.startswith(prefix)}
            )
        except Exception as error:  # noqa: BLE001  torch raises anything on files that are none of its own
            raise InputError(f"LPIPS: {layers} and {vgg16} are not its weights ({str(error)[:200]})") from None
        self.requires_grad_(requires_grad=False).eval()

    @torch.inference_mode()
    def forward(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the distance (N,) of images uint8 (N, H, W, 3)."""
        device = next(self.features.parameters()).device
        shift, scale = (torch.tensor(of, device=device)[:, None, None] for of in (_LPIPS_SHIFT, _LPIPS_SCALE))
        x, y = (
            (torch.from_numpy(of).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 - shift) / scale
            for of in (first, second)
        )
        total = torch.zeros(len(x), device=device)
        for place, (after, weight) in enumerate(zip(_LPIPS_LAYERS, self.linear, strict=True)):
            before = ([0, *_LPIPS_LAYERS])[place]
            x, y = (self.features[before:after](of) for of in (x, y))
            difference = (_unit(x) - _unit(y)).square()
            total += F.conv2d(difference, weight.to(device)).mean((1, 2, 3))
        return total.cpu().numpy()


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
