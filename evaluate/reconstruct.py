"""A tokenizer alone: real images encoded and decoded again, measured beside the real ones and pair by pair.

shards -> images uint8 (n, H, W, 3), decoded on CPU tasks -> their reconstructions -> features (n, D), PSNR, SSIM and
LPIPS of each, a file for each group of shards. Latents are the mean of the posterior; nothing is drawn.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ray.util import ActorPool
from upath import UPath

from evaluate.arrays import UNREADABLE, packed, read_arrays
from evaluate.config import Reconstruction
from evaluate.decoding import Decoding, Group, groups_of
from evaluate.features import Extractor
from evaluate.finish import Clock, conditions_against
from evaluate.measure import statistics_of
from evaluate.metrics.pairs import lpips as lpips_of
from evaluate.metrics.pairs import psnr, ssim
from evaluate.metrics.sets import FeatureSet
from evaluate.metrics.table import errors, numbers
from evaluate.networks import Features
from evaluate.reference import read_reference
from evaluate.results import GRID, ReconstructionResult
from infra.actors import actors
from infra.cluster import Compute, connected
from infra.console import Progress
from infra.errors import InputError
from infra.storage import location, write_atomic
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import cropped_images
from tokenize_jobs.tokenizers import load
from tokenize_jobs.tokenizers.lpips import LPIPS
from tokenize_jobs.tokenizers.pixels import from_uint8, to_uint8

PRECISION = "fp32"
_SHOWN = 16
_PIXELS_AT_ONCE = 16 * 256**2  # bounds the memory of encoder and decoder


@dataclass(frozen=True)
class Pairs:
    """Reconstructions, as they are kept, in the order of the source."""

    features: np.ndarray
    """(n, D) float32 of the reconstructions."""
    logits: np.ndarray
    """(n, classes) float32; no columns when the extractor is no classifier."""
    psnr: np.ndarray
    """(n,) dB."""
    ssim: np.ndarray
    """(n,); NaN for images that are smaller than its window."""
    lpips: np.ndarray
    """(n,), or empty without its weights."""
    shown: np.ndarray
    """(k, 2, H, W, 3) uint8: the first ones, the real image and its reconstruction."""
    seconds: np.ndarray
    """(groups, 2) of wall time: reconstructing, and everything after it."""

    def means(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard error of what is measured pair by pair, as far as it is known."""
        known = {name: getattr(self, name).astype(np.float64) for name in ("psnr", "ssim", "lpips")}
        return {
            name: (round(float(of.mean()), 6), round(float(of.std(ddof=1) / np.sqrt(len(of))), 6))
            for name, of in known.items()
            if len(of) and np.isfinite(of).all()
        }


@dataclass(frozen=True)
class _Work:
    """What every worker needs to know."""

    decoding: Decoding
    weights: TokenizerFile
    features: Features
    config: Reconstruction
    folder: str
    workers: int

    def path(self, index: int) -> UPath:
        return location(self.folder) / f"{index:04d}.npz"


def reconstruct(
    config: Reconstruction, weights: TokenizerFile, listing: Listing, reference: UPath, out: UPath, compute: Compute
) -> ReconstructionResult:
    """Measure a tokenizer over a source against a reference; leaves pairs of images and report.html in `out`.

    An interrupted call goes on in `out`; the numbers do not depend on the number of workers. Raises InputError when
    weights of a network are missing, or fewer than two images can be used.
    """
    real = read_reference(reference)
    pairs = _measured(config, weights, listing, real.about.features, real.about.image_size, out, compute)
    if len(pairs.features) < 2:
        raise InputError(f"image source {listing.root}: fewer than two of its images can be used")
    clock = Clock(dict(zip(("reconstructing", "features"), pairs.seconds.sum(0).tolist(), strict=True)))
    logits = pairs.logits if pairs.logits.shape[1] else np.empty((0, 0), np.float32)
    found = FeatureSet(statistics_of(pairs.features), pairs.features, logits)
    with clock.timing("numbers"):
        measured = numbers(found, real.set)
    with clock.timing("errors"):
        bars = errors(found, real.set, measured)
    for name, (mean, error) in pairs.means().items():
        measured[name], bars[name] = mean, error
    conditions = conditions_against(real.about, len(pairs.features), PRECISION)
    result = ReconstructionResult(
        metric=f"r{conditions.title}", numbers=measured, errors=bars, conditions=conditions,
        rank_deficient=conditions.is_rank_deficient, tokenizer_kind=weights.kind, tokenizer_hash=weights.hash,
        lpips_weights=config.lpips_digest,
    )  # fmt: skip
    _leave_pairs(pairs, out)
    with clock.timing("page"):
        from evaluate.report.reconstruction import write_page  # matplotlib takes a second to import

        write_page(result, pairs.psnr, out)
    return replace(result, seconds=clock.rounded())


def _measured(
    config: Reconstruction,
    weights: TokenizerFile,
    listing: Listing,
    features: Features,
    size: int,
    out: UPath,
    compute: Compute,
) -> Pairs:
    """Return all pairs in the order of the source, whatever the workers."""
    groups = groups_of(listing, config.images)
    progress, images = Progress("reconstruction", len(groups), "groups of shards"), 0
    with connected(compute) as cluster:
        workers = replace(cluster.generate, count=min(cluster.generate.count, len(groups)))
        decoding = Decoding.on(workers, replace(listing, shards=()), size)
        work = _Work(decoding, weights, features, config, str(out / "pairs"), workers.count)
        cpus = decoding.worker_cpus(workers.gpus)
        with actors(_Measurer, work, count=workers.count, cpus=cpus, gpus=workers.gpus) as made:
            rows = ActorPool(made).map_unordered(lambda worker, group: worker.__call__.remote(group), groups)
            for done, count in enumerate(rows, 1):
                images += count
                progress.update(done, f", {images} images")
    parts = [_read(work.path(group.index)) for group in groups]
    if any(part is None for part in parts):
        raise RuntimeError(f"{out}: some pairs were lost; run it again")
    pairs = _merged([part for part in parts if part is not None and len(part.features)])
    if len(pairs.features) != images:
        raise RuntimeError(f"{out}: {len(pairs.features)} pairs, not {images}; run it again")
    return pairs


class _Measurer:
    """One worker: tokenizer, extractor and LPIPS, and the tasks that decode for it."""

    def __init__(self, work: _Work) -> None:
        torch.set_num_threads(work.decoding.cores)
        self.work, self.extractor = work, Extractor(work.features)
        self.device = self.extractor.device
        self.tokenizer = load(work.weights.kind, work.weights.path).to(self.device)
        files = work.config.lpips_files
        self.lpips = LPIPS(*files).to(self.device) if files else None

    def __call__(self, group: Group) -> int:
        path = self.work.path(group.index)
        pairs = _read(path)
        if pairs is None:
            pairs = self._measure(group)
            write_atomic(path, packed({field.name: getattr(pairs, field.name) for field in fields(Pairs)}))
        return len(pairs.features)

    def _measure(self, group: Group) -> Pairs:
        parts = list[Pairs]()
        for _, images in self.work.decoding.batches(group, cropped_images):
            shown = max(0, _SHOWN - sum(len(part.shown) for part in parts)) if group.index == 0 else 0
            parts.append(self._pairs(images, shown))
        return _merged(parts)

    def _pairs(self, images: np.ndarray, shown: int) -> Pairs:
        clock = Clock({})
        with clock.timing("reconstructing"):
            copies = self.reconstructed(images)
        with clock.timing("features"):
            features, logits = self.extractor.layers(copies)
            lpips = np.empty(0, np.float32) if self.lpips is None else lpips_of(self.lpips, images, copies)
            measured = psnr(images, copies), ssim(images, copies), lpips
        seconds = np.array([list(clock.seconds.values())]) / self.work.workers
        return Pairs(features, logits, *measured, np.stack([images, copies], 1)[:shown], seconds)

    @torch.inference_mode()
    def reconstructed(self, images: np.ndarray) -> np.ndarray:
        """Return images uint8 (n, H, W, 3), encoded to the mean of the posterior and decoded, in float32."""
        at_once, found = max(1, _PIXELS_AT_ONCE // images[0, ..., 0].size), []
        kind = self.tokenizer.tokens(images.shape[1] // self.tokenizer.stride)
        for start in range(0, len(images), at_once):
            encoded = self.tokenizer.encode(from_uint8(images[start : start + at_once], self.device))
            copies = self.tokenizer.decode(kind.likeliest(encoded).float()).float()
            if not bool(copies.isfinite().all()):  # uint8 would hide it
                raise InputError(f"tokenizer {self.work.weights.path}: reconstructions are not finite numbers")
            found.append(to_uint8(copies))
        return np.concatenate(found)


def _merged(parts: list[Pairs]) -> Pairs:
    """Return adjoining pairs as one; of none, arrays without rows."""
    if not parts:
        rows, of = np.empty((0, 0), np.float32), np.empty(0)
        return Pairs(rows, rows, of, of, of, np.empty((0, 2, 0, 0, 3), np.uint8), np.zeros((1, 2)))
    return Pairs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Pairs)))


def _read(path: UPath) -> Pairs | None:
    """Return the pairs of a file, or None when it is not there, or not whole."""
    try:
        saved = read_arrays(path)
        return Pairs(**{field.name: saved[field.name] for field in fields(Pairs)})
    except UNREADABLE:
        return None


def _leave_pairs(pairs: Pairs, out: UPath) -> None:
    """Write the first images above their reconstructions as a picture, eight side by side."""
    rows = [pairs.shown[start : start + 8] for start in range(0, len(pairs.shown), 8)]
    sheets = [np.concatenate([np.concatenate(list(row[:, which]), 1) for which in (0, 1)], 0) for row in rows]
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, 4), (0, width - sheet.shape[1]), (0, 0)), constant_values=255) for sheet in sheets]
    Image.fromarray(np.concatenate(padded, 0)).save(Path(str(out)) / GRID)
