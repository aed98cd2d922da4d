"""How near an image is to another of which it is a copy: PSNR, SSIM and, with its weights, LPIPS."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_jobs.tokenizers.lpips import LPIPS
from tokenize_jobs.tokenizers.pixels import from_uint8

BEST_PSNR = 100.0
"""dB that images without any difference count as: their PSNR has no bound."""
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


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


@torch.inference_mode()
def lpips(network: LPIPS, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the perceptual distance (N,) of images uint8 (N, H, W, 3)."""
    device = next(network.features.parameters()).device.type
    return network(from_uint8(first, device), from_uint8(second, device)).cpu().numpy()
