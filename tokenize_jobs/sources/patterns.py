"""What a user writes of a source -> its files: a folder, a file, a list `A::B`, braces `{000..146}`, wildcards `*`."""

import glob
import posixpath
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand
from fsspec import AbstractFileSystem
from upath import UPath

from infra.console import Progress, waiting
from infra.errors import InputError
from infra.storage import is_local, location

Infos = dict[str, dict[str, Any]]
_WILD = frozenset("*?[")
_HIDDEN = re.compile(r"/(\.|__MACOSX/)")
_AT_ONCE, _LEVELS, _MANY, _EVERY_SECONDS = 16, 3, 100_000, 10.0


def find_files(text: str) -> tuple[UPath, Infos]:
    """Return the folder that a source's files lie below, and what the filesystem knows of each, by relative name.

    Names are sorted. Raises InputError for what matches nothing or lies on several filesystems, and what the
    filesystem raises.
    """
    paths = _expanded(text)
    above, found, listed = list[str](), Infos(), dict[str, Infos]()
    for path in paths:
        folder, infos = _below(path, listed if len(paths) > 1 else {})
        above.append(folder)
        found |= infos
    top = posixpath.commonpath(above)
    start = len(top.rstrip("/")) + 1
    infos = {name[start:]: info for name, info in sorted(found.items())}
    first = paths[0]
    return (first if len(paths) == 1 and top == first.path.rstrip("/") else _at(first, top)), infos


def absolute(text: str) -> str:
    """Return what names the same source from every working directory."""
    return "::".join(str(location(word)) for word in text.split("::"))


def _expanded(text: str) -> list[UPath]:
    try:
        paths = [location(path) for word in text.split("::") for path in _braces(word)]
    except UnbalancedBracesError as error:
        raise InputError(f"image source {text}: {error}") from None
    if len({path.protocol for path in paths}) > 1:
        raise InputError(f"image source {text}: lies on several filesystems; give those of one")
    return paths


def _braces(word: str) -> Iterable[str]:
    """Expand braces, but for those in the name of a local file or folder that there is."""
    return [word] if is_local(path := location(word)) and path.exists() else braceexpand(word)


def _below(path: UPath, listed: dict[str, Infos]) -> tuple[str, Infos]:
    """Return the folder and the files that one path without braces names; `listed` keeps what folders of files hold."""
    name = path.path.rstrip("/")
    parent = posixpath.dirname(name)
    if parent in listed and name in listed[parent]:
        return parent, {name: listed[parent][name]}
    if path.is_dir():
        return name, _seen(_find(path.fs, name), name)
    if path.is_file():
        listed[parent] = {info["name"]: info for info in path.fs.ls(parent, detail=True) if info["type"] == "file"}
        return parent, {name: listed[parent].get(name) or path.fs.info(name)}
    if not _WILD & set(name):
        raise InputError(f"image source {path}: no such file or folder")
    with waiting("pictures", f"listing {name}", _EVERY_SECONDS):
        matched = _matched(path, name)
    found = {match: info for match, info in matched.items() if info["type"] == "file" or path.fs.isfile(match)}
    for folder in matched.keys() - found.keys():
        found |= _find(path.fs, folder)
    folder = posixpath.dirname(name[: min(name.index(sign) for sign in _WILD if sign in name)])
    if not (found := _seen(found, folder)):
        raise InputError(f"image source {path}: matches no file")
    return folder, found


def _matched(path: UPath, name: str) -> Infos:
    """Return what matches a pattern; on a disk as Python does, for fsspec goes into no folder that is a link."""
    if not is_local(path) or "**" in name:
        return path.fs.glob(name, detail=True)
    return {match: path.fs.info(match) for match in glob.iglob(name)}  # noqa: PTH207  Path's have no absolute pattern


def _seen(infos: Infos, folder: str) -> Infos:
    """Return the files below a folder without what programs hide there: ._IMG.jpg, .ipynb_checkpoints, __MACOSX."""
    return {name: info for name, info in infos.items() if not _HIDDEN.search(name, len(folder.rstrip("/")))}


def _find(fs: AbstractFileSystem, folder: str) -> Infos:
    """Return the files below a folder, many folders listed at once; says how far it is when there are many files.

    Links to folders are followed, but for those that lead back up.
    """
    files, folders = Infos(), [folder]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in range(_LEVELS):  # where few folders hold all others, there is more to share below them
            if not 0 < len(folders) < _AT_ONCE:
                break
            with waiting("pictures", f"listing {folder}", _EVERY_SECONDS):  # a bucket lists a thousand at a time
                inside = [info for infos in pool.map(lambda name: _inside(fs, name), folders) for info in infos]
            files |= {info["name"]: info for info in inside if info["type"] != "directory"}
            folders = [info["name"] for info in inside if info["type"] == "directory"]
        progress = Progress("pictures", len(folders), "folders listed")
        for done, infos in enumerate(pool.map(lambda name: fs.find(name, detail=True), folders), 1):
            files |= infos
            if len(files) >= _MANY:
                progress.update(done, f", {len(files):,} files")
    for name in [name for name, info in files.items() if info.get("islink") and Path(name).is_dir()]:
        del files[name]
        target = Path(name).resolve()
        if not any(above.resolve().is_relative_to(target) for above in Path(name).parents):
            files |= _find(fs, name)
    return files


def _inside(fs: AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    """Return what lies in a folder; nothing of one that must not be read, as `find` does."""
    try:
        return [info for info in fs.ls(folder, detail=True) if info["name"].rstrip("/") != folder.rstrip("/")]
    except PermissionError:
        return []


def _at(path: UPath, name: str) -> UPath:
    """Return the path `name` of the filesystem that `path` is on."""
    return UPath(path.fs.unstrip_protocol(name)) if path.protocol not in ("", "file", "local") else location(name)
