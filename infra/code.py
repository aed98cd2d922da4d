"""Digests of the code that decides a step's numbers, as syntax: comments, docstrings and formatting do not count."""

import ast
import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from infra.errors import InputError

ROOT = Path(__file__).parents[1]


def digests(names: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Return file -> 8 hex digits of its syntax, for the named files and folders below `root`.

    Raises InputError naming the file and line that is not Python.
    """
    paths = [path for name in names for path in (sorted((root / name).rglob("*.py")) or [root / name])]
    return {os.path.relpath(path, root): _digest(path, path.stat().st_mtime_ns) for path in paths}


def changed(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files that were changed, added or removed since `recorded`."""
    return sorted(name for name in {*recorded, *now} if recorded.get(name) != now.get(name))


@lru_cache(maxsize=1024)
def _digest(path: Path, changed_ns: int) -> str:  # noqa: ARG001  a key of the cache: a file may change while we run
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_text(child)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:8]


def _is_text(node: ast.stmt) -> bool:
    """Tell whether a statement is a string that stands alone: a docstring, or one below a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
