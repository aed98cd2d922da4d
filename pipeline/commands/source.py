"""IMAGES [flags]: what is in a source of pictures, before anything runs

IMAGES is named as in --images.path: a folder, file, list or pattern. Sizes, faults and the picture grid are of a
sample: seeded shards, and of each its first pictures (of single files, seeded ones).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from PIL import Image

from infra.cluster import Compute
from infra.console import say, table
from infra.errors import InputError
from infra.seeding import stream
from pipeline.estimate import counted_images, kl16_estimate
from pipeline.flags import Unprefixed, parse
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.listing import ImageFiles, Listing, scan_images
from tokenize_jobs.sources.samples import read_shard
from tokenize_jobs.sources.shard import Sample, Shard

_MOST_SHARDS, _MOST_ROWS, _GRID_SIDE = 16, 20, 8
_TAR_BYTES = 3.5 * 512  # around a picture and in its .cls: two headers, a block, half a block to fill the last


@dataclass(frozen=True, kw_only=True)
class Source:
    """Look at a source of pictures."""

    images: Unprefixed[ImageFiles] = field(default_factory=ImageFiles)
    """Where the pictures lie."""
    image_size: int = 256
    """Pixels of a side that are asked for."""
    sample: int = 256
    """Pictures to open."""
    grid: str = "source.png"
    """File of the picture grid."""
    seed: int = 0
    """Seed of the sample."""
    compute: Compute = field(default_factory=Compute)
    """Where the pictures would be tokenized."""


def main(words: list[str]) -> None:
    """Print what the source holds. Raises InputError for one that cannot be read."""
    default = Source(images=ImageFiles(path=words[0]))
    chosen = parse(default, words[1:], f"mar source {words[0]}")
    if chosen.image_size < 1 or chosen.sample < 1:
        raise InputError("--image-size and --sample are at least 1")
    found = scan_images(chosen.images)
    say(found.told)
    samples = list(islice(_sample(found.all, chosen.sample, chosen.seed), chosen.sample))
    sides, crops, faults, labels = _opened(samples, chosen.image_size)
    exact = counted_images(found.all)
    images = _counted_by_bytes(found.all, samples) if exact is None else exact
    say(f"{'' if exact is not None else 'about '}{images:,} pictures, {found.all.total_bytes:,} bytes")
    say(f"\n{_classes(found.all, labels)}\n")
    _say_sizes(sides, chosen.image_size)
    say(f"would be quarantined: {sum(faults.values())} of {len(samples)} opened")
    for reason, times in faults.most_common(_MOST_ROWS):
        say(f"  {times} x {reason}")
    cost = kl16_estimate(images, chosen.image_size, chosen.compute)
    say(f"to tokenize by KL-16: {(cost.seconds or 0) / 3600:,.2f} hours, {cost.bytes:,.0f} bytes ({cost.basis})")
    if crops:
        _grid(crops[: _GRID_SIDE**2]).save(chosen.grid, "PNG")
        say(f"picture grid: {chosen.grid}")


def _counted_by_bytes(listing: Listing, samples: list[Sample]) -> int:
    """Return how many pictures of the opened ones' mean size would fill the source."""
    sizes = [len(sample.content) for sample in samples if sample.content]
    around = _TAR_BYTES if listing.format == "webdataset" else 0
    return round(listing.total_bytes / (np.mean(sizes) + around)) if sizes else 0


def _sample(listing: Listing, most: int, seed: int) -> Iterator[Sample]:
    """Yield some `most` samples, evenly from seeded shards."""
    draws = stream("source-sample", seed)
    picked = draws.permutation(len(listing.shards))[:_MOST_SHARDS]
    each = -(-most // len(picked))
    for index in picked:
        yield from islice(read_shard(listing, _drawn(listing.shards[index], each, draws)), each)


def _drawn(shard: Shard, most: int, draws: np.random.Generator) -> Shard:
    """Return a shard of single files with `most` of them; another as it is."""
    if len(shard.files) < 2 or len(shard.files) != len(shard.labels):
        return shard
    kept = draws.permutation(len(shard.files))[:most]
    return replace(shard, files=tuple(shard.files[i] for i in kept), labels=tuple(shard.labels[i] for i in kept))


def _opened(samples: list[Sample], size: int) -> tuple[list[int], list[np.ndarray], Counter[str], Counter[int]]:
    """Return the shorter sides, crops, reasons to quarantine and labels of the samples."""
    sides, crops = list[int](), list[np.ndarray]()
    faults, labels = Counter[str](), Counter[int]()
    for sample in samples:
        try:
            if sample.fault:
                raise BadImage(sample.fault)
            image = decode(sample.content)
        except BadImage as error:
            faults[str(error)] += 1
            continue
        sides.append(min(image.size))
        labels[int(sample.label)] += 1
        if len(crops) < _GRID_SIDE**2:
            crops.append(centre_crop(image, min(size, 128)))
    return sides, crops, faults, labels


def _classes(listing: Listing, opened: Counter[int]) -> str:
    """Return a table of the classes: counts of all pictures where the files tell them, else of those opened."""
    tells = counted_images(listing) is not None and not listing.labels.table
    counts = Counter(label for shard in listing.shards for label in shard.labels) if tells else opened
    rows = [(label, name, counts[label]) for label, name in enumerate(listing.classes[:_MOST_ROWS])]
    if more := len(listing.classes) - len(rows):
        rows.append(("...", f"{more} more", sum(counts.values()) - sum(row[2] for row in rows)))
    return table(rows, ("label", "class", "pictures" if tells else "of those opened"))


def _say_sizes(sides: list[int], size: int) -> None:
    if sides:
        small = sum(side < size for side in sides)
        say(f"shorter side: {min(sides)} to {max(sides)} pixels, median {np.median(sides):.0f}")
        say(f"smaller than {size}: {small / len(sides):.1%} of {len(sides)} opened")


def _grid(crops: list[np.ndarray]) -> Image.Image:
    size, columns = crops[0].shape[0], min(len(crops), _GRID_SIDE)
    sheet = Image.new("RGB", (columns * size, -(-len(crops) // columns) * size), "white")
    for index, pixels in enumerate(crops):
        sheet.paste(Image.fromarray(pixels), (index % columns * size, index // columns * size))
    return sheet
