"""Networks that measure images, as a recipe names them: whose features are compared, and who tells the classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluate.extractors import NETWORKS, Network, sha256, weights_file
from infra.errors import InputError
from infra.fingerprint import file_at

Extractor = Literal[
    "inception-v3-compat", "vgg16", "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "dinov2-vit-s-14",
    "dinov2-vit-b-14", "dinov2-vit-l-14", "dinov2-vit-g-14", "efficientnet-lite0", "cifar-resnet-56",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Features:
    """The network whose features are compared."""

    name: Extractor = "inception-v3-compat"
    """Extractor of the features: inception-v3-compat is FID's own, efficientnet-lite0 comes with the extra [demo]."""
    weights: str = file_at(default="")
    """File of its weights; empty takes them from where torch keeps downloads."""

    @property
    def network(self) -> Network:
        """What the extractor computes."""
        return NETWORKS[self.name]

    @property
    def file(self) -> Path:
        """The file of the weights. Raises InputError as `check` does."""
        return weights_file(self.name, self.weights, "--reference.features.weights")

    @property
    def digest(self) -> str:
        """The weights' sha256, 16 digits."""
        return sha256(self.file)[:16]

    @property
    def identity(self) -> dict[str, str]:
        """What tells one file of weights that was given from another; nothing where the published hash is known."""
        return {f"{self.name} weights": self.digest} if self.weights and not self.network.sha256 else {}

    def check(self) -> None:
        """Raise InputError unless the network's weights are at hand: where to get them, and where to put them."""
        _ = self.file


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The network that says whether images are of the class they were drawn as."""

    name: Literal["none", "efficientnet-lite0", "cifar-resnet-56"] = "none"
    """Classifier of generated images: efficientnet-lite0 knows ImageNet's classes, cifar-resnet-56 CIFAR-10's."""
    weights: str = file_at(default="")
    """File of its weights; empty takes them from where torch keeps downloads."""

    @property
    def features(self) -> Features | None:
        """The network as an extractor, or None without one."""
        return None if self.name == "none" else Features(name=self.name, weights=self.weights)

    @property
    def identity(self) -> dict[str, str]:
        """What tells a file of weights that was given from another, where it is not told by the network's name."""
        return {f"judge's {name}": of for name, of in (self.features.identity if self.features else {}).items()}

    @property
    def told(self) -> str:
        """Name and digest of the network; '' without one."""
        return f"{self.name} {self.features.digest}" if self.features else ""

    def check(self, num_classes: int) -> None:
        """Raise InputError unless the weights are at hand and the classifier knows this many classes."""
        if (features := self.features) is None:
            return
        weights_file(self.name, self.weights, "--evaluate.classifier.weights")
        if features.network.classes != num_classes:
            raise InputError(
                f"--evaluate.classifier.name {self.name} knows {features.network.classes} classes, the model has "
                f"{num_classes}: choose another, or none"
            )
