"""The layouts there are, and which one a source's files are in."""

from collections.abc import Mapping
from typing import Any

from upath import UPath

from infra.errors import InputError
from tokenize_jobs.sources.arrow import ARROW
from tokenize_jobs.sources.flat import FLAT
from tokenize_jobs.sources.folder import FOLDER
from tokenize_jobs.sources.imagenet import IMAGENET
from tokenize_jobs.sources.npz import NPZ
from tokenize_jobs.sources.parquet import PARQUET
from tokenize_jobs.sources.shard import IMAGE_SUFFIXES, Layout
from tokenize_jobs.sources.webdataset import WEBDATASET

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (IMAGENET, WEBDATASET, PARQUET, ARROW, FOLDER, FLAT, NPZ)
}
"""In the order in which they are looked for: the first that any file is of is the source's."""
SINGLE_IMAGES = (FOLDER, FLAT)
"""Layouts whose files are images themselves."""
_MOST_IGNORED = 0.01
"""Share of the bytes in files of other layouts that is passed over; more is a source that mixes layouts."""
_Infos = Mapping[str, Any]


def layout_of(root: UPath, found: _Infos) -> tuple[Layout, dict[str, Any]]:
    """Return the layout of a source, and those of its files that are in it. Raises InputError for none and for several.

    `found` is what the filesystem knows of each file, by its name relative to the root.
    """
    for layout in LAYOUTS.values():
        if infos := {name: info for name, info in found.items() if layout.takes(name)}:
            _refuse_mixed(root, layout, infos, found)
            return layout, infos
    raise InputError(
        f"image source {root}: holds no .tar, .parquet, .arrow or .npz, and no images ({', '.join(IMAGE_SUFFIXES)})."
    )


def _refuse_mixed(root: UPath, layout: Layout, taken: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise InputError where files that would be passed over are too many to be there by chance."""
    tars = {IMAGENET, WEBDATASET}  # beside the training images the other downloads may lie; many a .npz has no pictures
    others = [other for other in LAYOUTS.values() if other not in (layout, NPZ) and not {other, layout} <= tars]
    left = [name for name in found if name not in taken and any(other.takes(name) for other in others)]
    shards = {name.lower() for name in taken}
    left = [name for name in left if f"{name.lower().removesuffix('.parquet')}.tar" not in shards]  # img2dataset's
    ignored = sum(int(found[name]["size"] or 0) for name in left)
    if ignored > _MOST_IGNORED * sum(int(info["size"] or 0) for info in taken.values()):
        raise InputError(
            f"image source {root}: mixes layouts: {len(taken)} files are read as {layout.name}, as {min(taken)}, and "
            f"{len(left)} others hold pictures too, as {min(left)}. Name those you mean, by a folder or a pattern "
            "like 'DIR/*.tar'."
        )
