"""A feature map as a sum of codes at several scales, coarse to fine (VAR, Tian et al. 2024, section 3.2)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_jobs.quantization.codebook import Codebook, in_float32, look_up, nearest

_BLEND = 0.5
"""Share of a phi's output that its convolution has."""


def phi_of(scale: int, scales: int, phis: int) -> int:
    """Return which of the phis serves a scale (0-based): the nearest of evenly spread ticks, the first of equals.

    Where two are equally near, as for scales 2 and 7 of the published ten, float64's rounding decides, as it did in the
    published code: the ticks are numpy's linspace.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    step = ((1 - margin) - margin) / max(phis - 1, 1)
    ticks = [*(tick * step + margin for tick in range(phis - 1)), 1 - margin]
    place = scale / max(scales - 1, 1)
    return min(range(phis), key=lambda tick: abs(ticks[tick] - place))


class Scales(nn.Module):
    """The codebook that all scales share, and the phis: blends of a map with its convolution.

    `sides` are those of the scales' square grids; the last is the feature map's own, S.
    """

    def __init__(self, codebook: Codebook, phis: int) -> None:
        super().__init__()
        channels = codebook.vectors.shape[1]
        self.codebook = codebook
        self.phis = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(phis))

    def added(self, vectors: Tensor, scale: int, sides: Sequence[int]) -> Tensor:
        """Return what vectors (B, C, p, p) of a scale add to the feature map: (B, C, S, S), float32 under autocast."""
        phi, side = self.phis[phi_of(scale, len(sides), len(self.phis))], sides[-1]
        with torch.autocast(vectors.device.type, enabled=False):
            if scale < len(sides) - 1:
                vectors = F.interpolate(vectors, size=side, mode="bicubic")
            convolve = _convolve_in_graph if torch.compiler.is_compiling() else _convolve
            return vectors * (1 - _BLEND) + convolve(vectors, phi.weight, phi.bias) * _BLEND

    def quantised(self, features: Tensor, sides: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield of each scale what is quantised (B, C, p, p), its codes (B, p, p), and what they add (B, C, S, S).

        Each scale quantises what the coarser ones left of features (B, C, S, S), and sees nothing of the finer ones.
        """
        rest = features.float()
        for scale, side in enumerate(sides):
            shrunk = shrink(rest, side) if scale < len(sides) - 1 else rest
            codes = nearest(shrunk, self.codebook.vectors)
            added = self.added(look_up(codes, self.codebook.vectors), scale, sides)
            yield shrunk, codes, added
            rest = rest - added

    def encode(self, features: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the codes (B, L) of features (B, C, S, S), coarse to fine, each scale row by row."""
        return torch.cat([codes.flatten(1) for _, codes, _ in self.quantised(features, sides)], 1)

    def partial_sums(self, codes: Tensor, sides: Sequence[int]) -> Iterator[Tensor]:
        """Yield the feature map (B, C, S, S) of codes (B, L) after each scale; the last is what `encode` stands for."""
        features: Tensor | float = 0.0
        for scale, of_scale in enumerate(split(codes, sides)):
            features = features + self.added(look_up(of_scale, self.codebook.vectors), scale, sides)
            yield features


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with in_float32(x.device):
        return F.conv2d(x, weight, bias, padding=1)


@torch.library.custom_op("mar::convolve_in_float32", mutates_args=())
def _convolve_in_graph(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve as a step of a compiled graph, which has no place for settings; only frozen phis are compiled."""
    return _convolve(x, weight, bias)


@_convolve_in_graph.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


def split(codes: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """Return codes (B, L) as the grid (B, p, p) of each scale."""
    parts = codes.split([side**2 for side in sides], 1)
    return [part.unflatten(1, (side, side)) for part, side in zip(parts, sides, strict=True)]


def shrink(features: Tensor, side: int) -> Tensor:
    """Return features (B, C, S, S) averaged over areas: (B, C, side, side), float32 under autocast too."""
    return F.interpolate(features.float(), size=side, mode="area")
