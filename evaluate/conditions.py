"""What a number depends on besides the model and its sampling settings: only numbers under the same may be ranked."""

import json
from dataclasses import asdict, dataclass

from evaluate.metrics import frechet


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything that has to be the same for two numbers to say which model is better."""

    extractor: str
    layer: str
    dimension: int
    """Features of an image."""
    extractor_weights: str
    """sha256, 16 digits."""
    image_size: int
    """Pixels a side that generated and real images have before the extractor resizes them."""
    images: int
    """N: the Fréchet distance of fewer images is larger."""
    reference: str
    """Digest of the reference's source."""
    reference_images: int
    """0 where a file of statistics does not say."""
    precision: str
    """Of sampling."""

    @property
    def title(self) -> str:
        """Name of the Fréchet distance under these conditions."""
        return frechet.title(self.extractor, self.images)

    @property
    def is_rank_deficient(self) -> bool:
        """Tell whether a covariance has fewer images than features, so that the distance is far from its limit."""
        return min(self.images, self.reference_images or self.images) <= self.dimension

    @property
    def tags(self) -> dict[str, str]:
        """What a tracking server shows beside a number under these conditions."""
        conditions = {f"condition.{name}": str(value) for name, value in asdict(self).items()}
        return {"rank_deficient": json.dumps(self.is_rank_deficient), **conditions}


def comparable(first: Conditions, second: Conditions) -> bool:
    """Tell whether numbers under these conditions may be ranked."""
    return first == second
