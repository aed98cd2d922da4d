"""Fréchet distance of features, by torch-fidelity's own formula (Heusel et al. 2017)."""

from evaluate.intervals import frechet_error
from evaluate.metrics.sets import FeatureSet, Statistics

NAME = "fd"
_FID_IMAGES = 50_000


def measure(of: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """Return the distance of a set of images to the reference."""
    return {NAME: frechet_distance(of.statistics, real.statistics)}


def errors(of: FeatureSet, real: FeatureSet, found: dict[str, float]) -> dict[str, float]:  # noqa: ARG001
    """Return its standard error at this number of images: what another seed would change."""
    return {NAME: frechet_error(of.features, real.statistics.mean, real.statistics.covariance)}


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric  # seconds to import: not for those who want the name

    both = [{"mu": of.mean, "sigma": of.covariance} for of in (first, second)]
    return float(fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])


def title(extractor: str, images: int) -> str:
    """Return 'FID' only for Inception features of at least 50,000 images, else 'FD (network, N)'."""
    if extractor == "inception-v3-compat" and images >= _FID_IMAGES:
        return "FID"
    return f"FD ({extractor}, {images})"
