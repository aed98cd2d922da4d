"""A look at a source of pictures before anything is made of it: how many, and what a seeded sample of them is like.

Single files and Parquet tables tell their number. Of others small sources are read through for it; that of larger ones
is by the mean size of the pictures opened.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image

from infra.errors import InputError
from infra.seeding import stream
from infra.storage import is_of_storage, location
from tokenize_jobs.sources.crop import BadImage, centre_crop, decode
from tokenize_jobs.sources.listing import Listing
from tokenize_jobs.sources.samples import read_shard
from tokenize_jobs.sources.shard import Sample, Shard

MOST_OPENED = 256
_MOST_SHARDS, _MOST_FOOTERS, _AT_ONCE = 16, 1024, 16
_MOST_READ = 1 << 26  # bytes, read through in seconds however small the pictures are
_TAR_BYTES = 3.5 * 512  # around a picture and in its .cls: two headers, a block, half a block to fill the last
SINGLE_FILES = ("folder", "flat")


@dataclass(frozen=True)
class Survey:
    """What a source holds, as far as a sample of it tells."""

    images: int
    is_exact: bool
    """The pictures were counted, not estimated."""
    opened: int
    sides: tuple[int, ...]
    """Shorter side of each picture that could be decoded."""
    faults: Counter[str]
    """Reasons to quarantine the others."""
    labels: Counter[int]
    crops: tuple[np.ndarray, ...]
    """Some of them, uint8 (size, size, 3)."""

    def smaller(self, size: int) -> float:
        """Return the share of the decoded pictures whose shorter side has fewer pixels than `size`."""
        return sum(side < size for side in self.sides) / max(len(self.sides), 1)


def survey(listing: Listing, most: int = MOST_OPENED, seed: int = 0, crops: int = 0, size: int = 128) -> Survey:
    """Open up to `most` pictures, evenly from seeded shards; keep `crops` of them, `size` pixels a side.

    Raises what the storage raises.
    """
    samples = list(islice(_sample(listing, most, seed), most))
    sides, kept = list[int](), list[np.ndarray]()
    faults, labels = Counter[str](), Counter[int]()
    for sample in samples:
        try:
            image = _decoded(sample)
        except BadImage as error:
            faults[str(error)] += 1
            continue
        sides.append(min(image.size))
        labels[int(sample.label)] += 1
        if len(kept) < crops:
            kept.append(centre_crop(image, size))
    exact = counted(listing)
    images = _counted_by_bytes(listing, samples) if exact is None else exact
    return Survey(images, exact is not None, len(samples), tuple(sides), faults, labels, tuple(kept))


def require_usable(listing: Listing, seed: int = 0) -> None:
    """Raise InputError where pictures are opened, up to MOST_OPENED evenly from seeded shards, and not one can be used.

    An only shard is read to its end: its first pictures may be unlike the others. The first that can be used ends the
    look. Raises what the storage raises.
    """
    faults, example = Counter[str](), ""
    only = read_shard(listing, listing.shards[0]) if len(listing.shards) == 1 else None
    for sample in only or islice(_sample(listing, MOST_OPENED, seed), MOST_OPENED):
        try:
            _decoded(sample)
        except BadImage as error:
            faults[str(error)] += 1
            example = example or sample.key
        else:
            return
    if not faults:
        return
    reasons = "; ".join(f"{times} x {reason}" for reason, times in faults.most_common(3))
    raise InputError(
        f"image source {listing.root}: not one of {faults.total()} pictures opened can be used, {example} among them "
        f"({reasons}). Nothing was made of it; `mar source {listing.root}` shows more."
    )


def _decoded(sample: Sample) -> Image.Image:
    if sample.fault:
        raise BadImage(sample.fault)
    return decode(sample.content)


def counted(listing: Listing) -> int | None:
    """Return how many pictures there are: one a file, rows in a table's footer, or of 64 MiB those read. Else None."""
    if listing.format in SINGLE_FILES:
        return sum(len(shard.files) for shard in listing.shards)
    is_table = listing.format == "parquet" and len(listing.shards) <= _MOST_FOOTERS
    if not is_table and not 0 < listing.total_bytes <= _MOST_READ:  # 0: the filesystem does not tell
        return None
    count = _rows if is_table else _readable
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return sum(pool.map(lambda shard: count(listing, shard), listing.shards))


def _readable(listing: Listing, shard: Shard) -> int:
    return sum(not sample.fault for sample in read_shard(listing, shard))


def _rows(listing: Listing, shard: Shard) -> int:
    """Return the rows of a table; none of one whose footer is damaged."""
    import pyarrow.parquet as pq

    with (location(listing.root) / shard.files[0]).open("rb") as file:
        try:
            return pq.ParquetFile(file).metadata.num_rows
        except (OSError, ValueError) as error:
            if is_of_storage(error):  # the storage failed, not the table
                raise
            return 0


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
    columns = {name: getattr(shard, name) for name in ("files", "labels", "sizes")}
    return replace(shard, **{name: tuple(column[i] for i in kept) for name, column in columns.items()})
