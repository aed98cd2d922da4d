"""IMAGES [flags]: what is in a source of pictures, before anything runs

IMAGES is named as in --images.path: a folder, file, list or pattern. Sizes, faults and the picture grid are of a
sample: seeded shards, and of each its first pictures (of single files, seeded ones).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from infra.cluster import Compute
from infra.console import say, table
from infra.errors import InputError
from infra.fingerprint import fingerprint
from pipeline.estimate import kl16_estimate
from pipeline.flags import Unprefixed, parse
from tokenize_jobs.sources.imagenet import spoken
from tokenize_jobs.sources.listing import ImageFiles, Listing, scan_images
from tokenize_jobs.sources.survey import SINGLE_FILES, Survey, survey

_MOST_ROWS, _GRID_SIDE = 20, 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Look at a source of pictures."""

    images: Unprefixed[ImageFiles] = field(default_factory=ImageFiles)
    """Where the pictures lie."""
    image_size: int = 256
    """Pixels of a side that are asked for."""
    sample: int = 256
    """Pictures to open."""
    grid: str = ""
    """File of the picture grid; empty takes source-ID.png, whose ID is of what was looked at and how."""
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
    seen = survey(found.all, chosen.sample, chosen.seed, _GRID_SIDE**2, min(chosen.image_size, 128))
    say(f"{'' if seen.is_exact else 'about '}{seen.images:,} pictures, {found.all.total_bytes:,} bytes")
    say(f"\n{_classes(found.all, seen)}\n")
    _say_sizes(seen, chosen.image_size)
    say(f"would be quarantined: {sum(seen.faults.values())} of {seen.opened} opened")
    for reason, times in seen.faults.most_common(_MOST_ROWS):
        say(f"  {times} x {reason}")
    cost = kl16_estimate(seen.images, chosen.image_size, chosen.compute)
    say(f"to tokenize by KL-16: {(cost.seconds or 0) / 3600:,.2f} hours, {cost.bytes:,.0f} bytes ({cost.basis})")
    if seen.crops:
        looked = [found.all.digest, chosen.image_size, chosen.sample, chosen.seed]
        grid = Path(chosen.grid or f"source-{fingerprint(looked)}.png").absolute()
        _grid(seen.crops).save(grid, "PNG")
        say(f"picture grid: {grid}")


def _classes(listing: Listing, seen: Survey) -> str:
    """Return a table of the classes: counts of all pictures where the files tell them, else of those opened."""
    tells = listing.format in SINGLE_FILES and not listing.labels.table
    counts = Counter(label for shard in listing.shards for label in shard.labels) if tells else seen.labels
    rows = [(label, name, counts[label]) for label, name in enumerate(spoken(listing.classes)[:_MOST_ROWS])]
    if more := len(listing.classes) - len(rows):
        rows.append(("...", f"{more} more", sum(counts.values()) - sum(row[2] for row in rows)))
    return table(rows, ("label", "class", "pictures" if tells else "of those opened"))


def _say_sizes(seen: Survey, size: int) -> None:
    if sides := seen.sides:
        say(f"shorter side: {min(sides)} to {max(sides)} pixels, median {np.median(sides):.0f}")
        say(f"smaller than {size}: {seen.smaller(size):.1%} of {len(sides)} opened")


def _grid(crops: Sequence[np.ndarray]) -> Image.Image:
    size, columns = crops[0].shape[0], min(len(crops), _GRID_SIDE)
    sheet = Image.new("RGB", (columns * size, -(-len(crops) // columns) * size), "white")
    for index, pixels in enumerate(crops):
        sheet.paste(Image.fromarray(pixels), (index % columns * size, index // columns * size))
    return sheet
