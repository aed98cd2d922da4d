"""A reference: what generated images are measured against, made once for all models and settings.

Mean and covariance of all real images' features, and the features and thumbnails of a random subset of them.
"""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from upath import UPath

from evaluate.config import Reference
from evaluate.decoding import Decoding, groups_of
from evaluate.drawn import UNREADABLE
from evaluate.metrics.sets import FeatureSet, Statistics
from evaluate.real_images import PARTS, Work, measured, read_part
from evaluate.results import ReferenceResult
from infra.cluster import Compute, connected
from infra.console import Progress
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import write_atomic, write_json
from tokenize_jobs.sources.listing import Listing

_SUMS, _ABOUT = "reference.npz", "reference.json"


@dataclass(frozen=True)
class RealFeatures:
    """A reference, read back."""

    about: ReferenceResult
    set: FeatureSet
    """Statistics of all images, features of the kept ones in the order of the source."""
    pictures: Sequence[bytes]
    """JPEG thumbnails of the kept ones."""


def make_reference(
    config: Reference, listing: Listing | None, image_size: int, out: UPath, compute: Compute
) -> ReferenceResult:
    """Measure real images, cropped to `image_size`, or take the statistics that `config` names; leaves files in `out`.

    The sums do not depend on the number of workers; an interrupted call goes on in `out`. Raises InputError when the
    extractor's weights are missing or fewer than two images can be used.
    """
    config.features.check()
    if config.statistics_digest:
        return _imported(config, image_size, out)
    if listing is None:
        raise InputError("a reference needs real images, or --reference.statistics")
    groups = groups_of(listing, config.images)
    progress, found = Progress("reference", len(groups), "groups of shards"), None
    with connected(compute) as cluster:
        decoding = Decoding.on(cluster.generate, replace(listing, shards=()), image_size)
        work = Work(decoding, config.features, str(out))
        for done, row in enumerate(measured(work, groups, cluster.generate), 1):
            if row["images"]:
                part = read_part(work.path(row["index"]))
                found = part if found is None else found + part
            progress.update(done, f", {config.features.name} features of {found.sums.count if found else 0} images")
    if found is None or found.sums.count < 2:
        raise InputError(
            f"image source {listing.root}: fewer than two of its images can be used as a reference; `mar tokenize` "
            "lists what is wrong with them"
        )
    result = ReferenceResult(
        images=found.sums.count, digest=listing.digest[:16], image_size=image_size, features=config.features,
        extractor_weights=config.features.digest, kept_features=len(found.keys),
    )  # fmt: skip
    _write(out, result, found.content())
    shutil.rmtree(str(out / PARTS), ignore_errors=True)
    return result


def _imported(config: Reference, image_size: int, out: UPath) -> ReferenceResult:
    """Take mean and covariance from a file as ADM publishes them. Raises InputError for any other."""
    path, dimension = Path(config.statistics), config.features.network.dimension
    try:
        with np.load(path, allow_pickle=False) as saved:
            mean, covariance = (np.asarray(saved[name]) for name in ("mu", "sigma"))
    except UNREADABLE as error:
        raise InputError(
            f"--reference.statistics {path}: needs arrays mu and sigma, and no pickles ({error})"
        ) from None
    if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise InputError(
            f"--reference.statistics {path}: mu {mean.shape} and sigma {covariance.shape} are not those of "
            f"{config.features.name}, which has {dimension} features"
        )
    if not all(np.issubdtype(of.dtype, np.floating) and np.isfinite(of).all() for of in (mean, covariance)):
        raise InputError(f"--reference.statistics {path}: mu or sigma holds other than finite floating-point numbers")
    result = ReferenceResult(
        images=0, digest=config.statistics_digest, image_size=image_size, features=config.features,
        extractor_weights=config.features.digest, kept_features=0,
    )  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean.astype(np.float32), covariance=covariance.astype(np.float64))
    _write(out, result, buffer.getvalue())
    return result


def _write(out: UPath, result: ReferenceResult, content: bytes) -> None:
    write_atomic(out / _SUMS, content)
    write_json(out / _ABOUT, canonical(result, identity=False))


def read_reference(folder: UPath) -> RealFeatures:
    """Read what `make_reference` left. Raises InputError naming the folder."""
    try:
        about = from_json((folder / _ABOUT).read_text(), ReferenceResult, str(folder / _ABOUT))
        if not about.images:
            with (folder / _SUMS).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                return RealFeatures(about, FeatureSet(Statistics(saved["mean"], saved["covariance"])), [])
        part = read_part(folder / _SUMS)
    except UNREADABLE as error:
        raise InputError(f"reference {folder}: cannot be read ({error})") from None
    statistics = part.sums.statistics()
    if len(part.features) == part.sums.count:  # all were kept: the mean is torch-fidelity's, as that of samples
        statistics = replace(statistics, mean=part.features.mean(0))
    return RealFeatures(about, FeatureSet(statistics, part.features), part.pictures)
