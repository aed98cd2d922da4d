"""Image sources: files in one of several layouts, and splits of them -> a listing of their shards.

The listing's digest covers classes, names and sizes, and a sample of the content (or the object store's checksum), so
it takes seconds on millions of files; a file changed in place without changing its size, middle only, is not noticed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from upath import UPath

from infra.errors import InputError
from infra.fingerprint import where
from infra.storage import location
from tokenize_jobs.sources.digest import kept, source_digest
from tokenize_jobs.sources.flat import FLAT
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.sources.labels import MOST_CLASSES, NONE, OWN_LABELS, Labels, is_number
from tokenize_jobs.sources.layouts import SINGLE_IMAGES, layout_of
from tokenize_jobs.sources.patterns import absolute, find_files
from tokenize_jobs.sources.shard import UNKNOWN, Layout, Shard, check_names
from tokenize_jobs.sources.splits import HELDOUT, TRAIN, Split, find_splits


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The user's own images, labelled or not."""

    kind: Literal["files"] = "files"
    """Image files of your own."""
    path: str = where(default="")
    """Folder, file, list (A::B) or pattern ({000..146}, *) of tars, Parquet tables or images; local, s3://, ..."""
    heldout_path: str = where(default="")
    """Images never trained on, named as in path: the floor of the evaluation."""
    split: str = ""
    """Split to train on, of those that folders or file names tell of; empty takes train."""
    heldout_split: str = ""
    """Split never trained on; empty takes validation, or else test."""
    heldout_share: float = 0.02
    """Share of the images kept from training where there is no held-out path or split; 0 keeps none."""
    label: str = "label"
    """Member (txt) or field of .json in tars, or column of Parquet tables, that holds the label: a number or a class's
    name. Or none: the pictures are of one class."""
    labels: str = where(default="")
    """CSV or TSV of key and label, in place of labels in the files; a key is a file's name, also without its suffix."""
    num_classes: int = 0
    """Labels are 0..num_classes-1; 0 takes class folders, names in the table's metadata, or lines of classes.tsv."""


@dataclass(frozen=True)
class Listing:
    """What a source holds, without opening its images."""

    format: str
    """Name of the layout."""
    root: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    digest: str
    total_bytes: int
    labels: Labels = OWN_LABELS
    heldout: Heldout = NONE_HELD
    side: Literal["all", "train", "heldout"] = "all"
    """Which samples reading gives: all, or those on one side of the rule `heldout`."""
    given: ImageFiles | None = field(default=None, compare=False)
    """What it was listed from, without what is held out, paths absolute; None for held-out images and samples."""

    def holds(self, shard: Shard, key: str) -> bool:
        """Tell whether the sample `key` of `shard` is on this listing's side."""
        return self.side == "all" or self.heldout.holds(shard.name, key) == (self.side == "heldout")


@dataclass(frozen=True)
class Images:
    """A recipe's images, as sources to read."""

    train: Listing
    """What is trained on; `all` without what the rule holds back."""
    heldout: Listing | None
    """What is never trained on."""
    all: Listing
    """What the latents are made of."""
    told: str
    """What was recognised, in one line for a person."""


@dataclass(frozen=True)
class _Files:
    """The files of a source that are in its layout, with what the filesystem knows of each, sorted by name."""

    root: UPath
    layout: Layout
    infos: dict[str, Any]
    labels: Labels

    def size(self, name: str) -> int:
        """Return the bytes of a file, UNKNOWN where its filesystem does not tell."""
        size = self.infos[name]["size"]
        return UNKNOWN if size is None else int(size)

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes that the labels tell."""
        layout, name = self.layout, self.labels.name
        about = ["names", layout.name, name]
        return tuple(kept(self.root, self.infos, about, lambda: layout.names(self.root, list(self.infos), name)))

    def split(self, split: Split, layout: Layout) -> "_Files":
        """Return those of one split that are in `layout`, relative to its folder."""
        prefix = f"{split.folder}/" if split.folder else ""
        root = self.root / split.folder if split.folder else self.root
        infos = {name: self.infos[prefix + name] for name in split.files if layout.takes(name)}
        return _Files(root, layout, infos, self.labels)


def scan(path: str, num_classes: int = 0, split: str = "") -> Listing:
    """Return the listing of the images below `path`: of the split `split`, by default train, where there are splits.

    Raises InputError when the path is missing, unreadable, holds no images or no such split.
    """
    return scan_images(ImageFiles(path=path, num_classes=num_classes, split=split, heldout_share=0)).all


def scan_heldout(path: str, train: Listing) -> Listing:
    """Return the listing of held-out images below `path`, labelled by the classes of `train`.

    Of splits the validation is taken, or else the test. Raises InputError as `scan` does, and for other classes.
    """
    files = _find(path, train.labels)
    splits = _splits(files)
    found = _listing(_chosen(files, splits, _first_heldout(splits)), len(train.classes), above=files.root, like=train)
    trained, held = ({f"{of.root}/{name}" for shard in of.shards for name in shard.files} for of in (train, found))
    if both := trained & held:
        raise InputError(
            f"image source {found.root}: the held-out images are those to train on, {min(both)} among them; give others"
        )
    return found


def scan_samples(path: str, classes: tuple[str, ...]) -> Listing:
    """Return the listing of images to measure, labelled as `classes` where their own are among these, or are numbers.

    A flat folder has none; no `classes` are the files' own. Raises InputError as `scan` does, and for other classes.
    """
    files = _find(path)
    if files.layout is FLAT:
        return _labelled(files, (), {})
    own = _classes_told(files)
    if not (classes or own):
        own = files.names()
    are_numbers = bool(own) and all(is_number(name) and int(name) < MOST_CLASSES for name in own)
    known = classes or (tuple(map(str, range(max(map(int, own)) + 1))) if are_numbers else own)
    labels = {name: place for place, name in enumerate(known)}
    if strange := [name for name in own if name not in labels]:
        labels = {name: int(name) for name in own if are_numbers}
        if max(labels.values(), default=len(known)) >= len(known):
            raise InputError(f"image source {files.root}: {strange[0]!r} is no class of the reference's images")
    return _labelled(files, known, labels)


def scan_images(images: ImageFiles) -> Images:
    """Return what to train on and what not, of the user's own images.

    Raises InputError as `scan` does, for a share out of [0, 1), and when the two have other classes.
    """
    if not images.path:
        raise InputError("where are the pictures? Give --images.path")
    if not 0 <= images.heldout_share < 1:
        raise InputError(f"--images.heldout-share {images.heldout_share}: a share is at least 0 and less than 1")
    table = str(location(images.labels)) if images.labels else ""
    files = _find(images.path, Labels(images.label, table))
    splits = _splits(files)
    name = images.split or (TRAIN if splits else "")
    train = _listing(_chosen(files, splits, name), images.num_classes, above=files.root)
    given = ImageFiles(path=absolute(images.path), split=images.split, label=images.label, labels=table)
    train = replace(train, given=replace(given, num_classes=images.num_classes))
    told = f"{train.format}, {_classes_in_short(train)}: {name} {_shards(train)}".replace(":  ", ": ")
    held = images.heldout_split or _first_heldout(splits, but=name)
    if images.heldout_path:
        heldout = scan_heldout(images.heldout_path, train)
        return Images(train, heldout, train, f"{told}; held out {_shards(heldout)} of {heldout.root}")
    if held:
        chosen = _chosen(files, splits, held)
        heldout = _listing(chosen, len(train.classes), above=files.root, like=train)
        unused = "".join(f"; unused {other}" for other in splits if other not in (name, held))
        return Images(train, heldout, train, f"{told}; held out {held} {_shards(heldout)}{unused}")
    if not images.heldout_share:
        return Images(train, None, train, f"{told}; none held out")
    ruled = replace(train, heldout=Heldout(images.heldout_share))
    told += f"; held out a share of {images.heldout_share:g}, for no others are given"
    return Images(replace(ruled, side="train"), replace(ruled, side="heldout"), train, told)


def _classes_in_short(listing: Listing) -> str:
    names = ", ".join(listing.classes[:3]) + ", ..." * (len(listing.classes) > 3)
    return f"{len(listing.classes)} classes ({names})"


def _shards(listing: Listing) -> str:
    return f"{len(listing.shards)} shard{'s' * (len(listing.shards) != 1)}"


def _splits(files: _Files) -> dict[str, _Files]:
    """Return the splits that hold images in the layout: a folder without class folders does not, unless all are so."""
    found = find_splits(list(files.infos), by_name=files.layout not in SINGLE_IMAGES)
    for layout in (files.layout, FLAT):
        splits = {name: files.split(split, layout) for name, split in found.items()}
        if splits := {name: split for name, split in splits.items() if split.infos}:
            return splits
    return {}


def _first_heldout(splits: Mapping[str, _Files], but: str = "") -> str:
    return next((name for name in HELDOUT if name in splits and name != but), "")


def _chosen(files: _Files, splits: Mapping[str, _Files], name: str) -> _Files:
    if not splits and not name:
        return files
    name = name or TRAIN
    if name not in splits:
        there = f"there are {', '.join(splits)}" if splits else "none were recognised"
        raise InputError(f"image source {files.root}: no split {name!r}; {there}. Choose with --images.split.")
    return splits[name]


def _find(path: str, labels: Labels = OWN_LABELS) -> _Files:
    """Return all files that `path` names, and that are in the layout found."""
    try:
        root, found = find_files(path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  fsspec filesystems raise their own exceptions
        raise InputError(f"image source {path}: cannot be read ({type(error).__name__}: {error})") from None
    layout, infos = layout_of(root, found)
    return _Files(root, layout, infos, labels)


def _listing(files: _Files, num_classes: int, above: UPath, like: Listing | None = None) -> Listing:
    classes = _classes(files, num_classes, above, like)
    return _labelled(files, classes, {name: label for label, name in enumerate(classes)})


def _labelled(files: _Files, classes: tuple[str, ...], labels: Mapping[str, int]) -> Listing:
    shards = files.layout.shards(files.root, list(files.infos), labels)
    check_names(files.root, shards)
    return Listing(
        format=files.layout.name, root=str(files.root), classes=classes, digest=_digest(files, classes),
        shards=tuple(replace(s, sizes=tuple(files.size(name) for name in s.files)) for s in shards),
        total_bytes=sum(int(info["size"] or 0) for info in files.infos.values()), labels=files.labels,
    )  # fmt: skip


def _classes(files: _Files, num_classes: int, above: UPath, like: Listing | None) -> tuple[str, ...]:
    """Return the classes that the files tell of, those of classes.tsv (index, name...), or numbers; or those of `like`.

    Raises InputError when there are none, not as many as `num_classes`, or one that `like` has not.
    """
    if files.labels.name == NONE and not files.labels.table:
        return ("image",)
    names = _classes_told(files) or _table(above) or (files.labels.classes() if files.labels.table else ())
    if like is not None:
        more = sorted(set(names) - set(like.classes))
        if more or (names != like.classes and names and files.layout not in SINGLE_IMAGES):
            raise InputError(
                f"image source {files.root}: its classes are not those of {like.root}, which is trained on"
                + (f": there is no {more[0]!r}" if more else ": their order differs")
            )
        return like.classes
    if not names and not num_classes and not files.labels.table:
        names = files.names()
    if not names and not num_classes:
        raise InputError(
            f"image source {files.root}: how many classes? Give --images.num-classes, put classes.tsv (number, "
            "name) beside the shards, or say --images.label none if they have no labels."
        )
    if names and num_classes and num_classes != len(names):
        raise InputError(
            f"image source {files.root}: num_classes is {num_classes}, but {len(names)} classes were found."
        )
    return names or tuple(map(str, range(num_classes)))


def _classes_told(files: _Files) -> tuple[str, ...]:
    of = () if files.labels.table else files.layout.classes(files.root, list(files.infos), files.labels.name)
    return of or _table(files.root)


def _table(folder: UPath) -> tuple[str, ...]:
    table = folder / "classes.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines() if line.strip()] if table.exists() else []
    return tuple(row[-1] for row in rows if row[0].isdigit())


def _digest(files: _Files, classes: Sequence[str]) -> str:
    return source_digest(
        files.root, files.infos, [files.layout.name, list(classes), *files.labels.identity()],
        is_sampled=files.layout not in SINGLE_IMAGES,
    )  # fmt: skip
