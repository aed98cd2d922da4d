"""Are generated pictures recognised? A linear classifier, fitted on features of real photographs, judges them.

python -m benchmarks.recognised artifacts/evaluation/images-64/features/ID/images --images /data/photos --size 64

The first are what `--evaluate.keep all` left. The classifier's own accuracy on held-out photographs stands
beside its judgement: it is the most that could be asked.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.machine import conditions
from evaluate.features import Extractor
from evaluate.networks import Features
from infra.console import say
from tokenize_jobs.sources.listing import ImageFiles, Listing, scan_images, scan_samples
from tokenize_jobs.sources.samples import crop_shard

_RIDGE = 1e-3  # features are standardised; of a few thousand pictures a plain fit would learn each by heart


def main(words: Sequence[str] | None = None) -> None:
    """Print the share that is recognised, in all and by class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawn", help="labelled pictures: the shards of an evaluation, or a folder of class folders")
    parser.add_argument("--images", required=True, help="the real ones")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--features", default="efficientnet-lite0", help="name of the extractor")
    parser.add_argument("--weights", default="", help="file of its weights, where torch keeps none")
    asked = parser.parse_args(words)
    images, extract = (
        scan_images(ImageFiles(path=asked.images)),
        Extractor(Features(name=asked.features, weights=asked.weights)),
    )
    classifier = Linear.fitted(*labelled(images.train, asked.size, extract), len(images.train.classes))
    say(conditions())
    if images.heldout is not None:
        features, labels = labelled(images.heldout, asked.size, extract)
        say(f"held-out photographs: {np.mean(classifier(features) == labels):.3f} of {len(labels)}")
    features, labels = labelled(scan_samples(asked.drawn, images.train.classes), asked.size, extract)
    right = classifier(features) == labels
    error = np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    say(f"drawn: {right.mean():.3f} +- {error:.3f} of {len(labels)}")
    for label, name in enumerate(images.train.classes):
        if (of := labels == label).any():
            say(f"  {name:20} {right[of].mean():.2f} of {of.sum()}")


def labelled(listing: Listing, size: int, extract: Extractor) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and labels (N,) of a source's pictures, cropped to `size` pixels a side."""
    samples = [of for shard in listing.shards for of in crop_shard(listing, shard, size) if of.pixels is not None]
    return extract(np.stack([of.pixels for of in samples])), np.array([of.label for of in samples])


class Linear:
    """Logistic regression on standardised features, classes weighted equally."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, layer: nn.Linear) -> None:
        self.mean, self.scale, self.layer = mean, scale, layer

    @classmethod
    def fitted(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> "Linear":
        """Return the classifier of these features (N, D) and labels (N,)."""
        made = cls(features.mean(0), features.std(0) + 1e-6, nn.Linear(features.shape[1], classes))
        nn.init.zeros_(made.layer.weight)
        nn.init.zeros_(made.layer.bias)
        counts = np.bincount(labels, minlength=classes)
        weights = torch.from_numpy(np.where(counts > 0, len(labels) / (classes * np.maximum(counts, 1)), 0)).float()
        inputs, targets = made._standardised(features), torch.from_numpy(labels)
        optimizer = torch.optim.LBFGS(made.layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            of = nn.functional.cross_entropy(made.layer(inputs), targets, weights)
            of = of + _RIDGE * made.layer.weight.square().sum()
            of.backward()
            return of

        optimizer.step(loss)
        return made

    @torch.no_grad()
    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the class (N,) of each."""
        return self.layer(self._standardised(features)).argmax(1).numpy()

    def _standardised(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((features - self.mean) / self.scale).float()


if __name__ == "__main__":
    main()
