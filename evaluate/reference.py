"""A reference: what generated images are measured against, made once for all models and settings.

Mean and covariance of all real images' features, and the features and thumbnails of a random subset of them.
"""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from upath import UPath

from evaluate.arrays import UNREADABLE, packed, read_arrays
from evaluate.config import Reference
from evaluate.decoding import Decoding, groups_of
from evaluate.metrics.sets import FeatureSet, Statistics
from evaluate.metrics.table import Numbers, numbers
from evaluate.real_images import PARTS, Part, Work, measured, part_of, read_part
from evaluate.results import ReferenceResult
from infra.cluster import Compute, connected
from infra.code import digests
from infra.console import Progress, stage
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint
from infra.from_json import from_json
from infra.storage import location, read_json, storage_errors, write_atomic, write_json
from tokenize_jobs.sources.listing import Listing

_SUMS, _ABOUT = "reference.npz", "reference.json"
_FLOOR = ("evaluate/metrics", "evaluate/intervals.py", "evaluate/reference.py")
"""Code that decides the floor."""


@dataclass(frozen=True)
class RealFeatures:
    """A reference, read back."""

    about: ReferenceResult
    set: FeatureSet
    """Statistics of all images, features of the kept ones in the order of the source."""
    pictures: Sequence[bytes]
    """JPEG thumbnails of the kept ones."""
    folder: UPath | None = None
    """Where it lies."""

    def numbers_against(self, real: "RealFeatures") -> Numbers:
        """Return the numbers of these images against a reference: evaluations' floor.

        Computed once, and kept beside the images: each evaluation tells the same ones.
        """
        if self.folder is None:
            return numbers(self.set, real.set)
        path = self.folder / f"floor-{fingerprint([self.about, real.about, digests(_FLOOR)])}.json"
        with contextlib.suppress(*UNREADABLE):  # none yet, or a damaged one
            return read_json(path)
        found = numbers(self.set, real.set)
        with contextlib.suppress(*storage_errors()):  # another's folder, read-only
            write_json(path, found)
        return found


def make_reference(
    config: Reference, listing: Listing | None, image_size: int, out: UPath, compute: Compute
) -> ReferenceResult:
    """Measure real images, cropped to `image_size`, take the statistics that `config` names, or both; fills `out`.

    The sums do not depend on the number of workers; an interrupted call goes on in `out`. Raises InputError when the
    extractor's weights are missing or fewer than two images can be used.
    """
    config.features.check()
    digest = config.statistics_digest
    statistics = _imported(config) if digest else {}
    if listing is None and not statistics:
        raise InputError("a reference needs real images, or --reference.statistics")
    part, mean = (None, {}) if listing is None else _measured(config, listing, image_size, out, compute)
    digests = [of for of in (digest, "" if listing is None else listing.digest) if of]
    result = ReferenceResult(
        images=0 if statistics or part is None else part.sums.count, kept_features=len(part.keys) if part else 0,
        digest="".join(of[: 16 // len(digests)] for of in digests), image_size=image_size, features=config.features,
        extractor_weights=config.features.digest,
    )  # fmt: skip
    write_atomic(out / _SUMS, packed({**(part.arrays() if part else {}), **mean, **statistics}))
    write_json(out / _ABOUT, canonical(result, identity=False))
    shutil.rmtree(str(out / PARTS), ignore_errors=True)
    if result.lacking:
        stage("reference", result.lacking)
    return result


def _measured(
    config: Reference, listing: Listing, image_size: int, out: UPath, compute: Compute
) -> tuple[Part, dict[str, np.ndarray]]:
    """Return the sums and the kept features of real images, and their mean where it can be torch-fidelity's.

    Raises InputError for fewer than two.
    """
    groups = groups_of(listing, config.images)
    progress, found, total = Progress("reference", len(groups), "groups of shards"), None, None
    with connected(compute) as cluster:
        decoding = Decoding.on(cluster.generate, replace(listing, shards=()), image_size)
        work = Work(decoding, config.features, str(out))
        for done, row in enumerate(measured(work, groups, cluster.generate), 1):
            if row["images"]:
                part = read_part(work.path(row["index"]))
                total = row_by_row(total, part.features) if part.whole and (found is None) == (total is None) else None
                found = part if found is None else found + part
            progress.update(done, f", {config.features.name} features of {found.sums.count if found else 0} images")
    if found is None or found.sums.count < 2:
        raise InputError(
            f"image source {listing.root}: fewer than two of its images can be used as a reference; `mar tokenize` "
            "lists what is wrong with them"
        )
    return found, {} if total is None else {"mean": total / np.float32(found.sums.count)}


def row_by_row(total: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Return the sum of rows float32 (N, D) added to that of those before them, one at a time.

    As torch-fidelity's mean is summed: in float32 the order decides its last digits.
    """
    return rows.sum(0) if total is None else np.concatenate([total[None], rows]).sum(0)


def _imported(config: Reference) -> dict[str, np.ndarray]:
    """Return mean and covariance from a file as ADM publishes them. Raises InputError for any other."""
    path, dimension = Path(config.statistics), config.features.network.dimension
    try:
        saved = read_arrays(location(path), ("mu", "sigma"))
        mean, covariance = saved["mu"], saved["sigma"]
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
    return {"mean": mean.astype(np.float32), "covariance": covariance.astype(np.float64)}


def read_reference(folder: UPath) -> RealFeatures:
    """Read what `make_reference` left. Raises InputError naming the folder."""
    try:
        about = from_json((folder / _ABOUT).read_text(), ReferenceResult, str(folder / _ABOUT))
        saved = read_arrays(folder / _SUMS)
        part = part_of(saved) if about.kept_features else None
        if about.images and part:
            statistics = _statistics(part, saved.get("mean"))
        else:
            statistics = Statistics(saved["mean"], saved["covariance"])
    except UNREADABLE as error:
        raise InputError(f"reference {folder}: cannot be read ({error})") from None
    if part is None:
        return RealFeatures(about, FeatureSet(statistics), [], folder)
    return RealFeatures(about, FeatureSet(statistics, part.features), part.pictures, folder)


def _statistics(part: Part, mean: np.ndarray | None) -> Statistics:
    """Return mean and covariance of all images; the mean is torch-fidelity's where it was told, or all were kept."""
    if mean is None and part.whole:
        mean = part.features.mean(0)
    return part.sums.statistics() if mean is None else replace(part.sums.statistics(), mean=mean)
