"""Frozen config -> canonical JSON -> fingerprint: what a result depends on, and nothing of where it ran.

A dataclass field made with `where()` (a path, a worker count) is left out, and so is one made with `added()` while it
has its default: what was made before the field existed stays what it is. Values without a stable form (callables,
sets, arbitrary objects) are refused, so that no memory address leaks into an identity.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import InputError

_WHERE, _ADDED, _FILE = "where", "added", "file"
T = TypeVar("T")


def where(**kwargs: Any) -> Any:  # noqa: ANN401
    """Declare a dataclass field that says where something is, not what it is: never fingerprinted."""
    return dataclasses.field(metadata={_WHERE: True}, **kwargs)


def file_at(**kwargs: Any) -> Any:  # noqa: ANN401
    """Declare a dataclass field that names a file or folder on a disk, as `where()` does: `with_absolute_files`."""
    return dataclasses.field(metadata={_WHERE: True, _FILE: True}, **kwargs)


def with_absolute_files(tree: T) -> T:
    """Return a tree of configs whose files are named from the root: workers have another working directory."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_absolute_files(value)
        elif field.metadata.get(_FILE) and value:
            changes[field.name] = str(Path(value).expanduser().absolute())
    return dataclasses.replace(tree, **changes)


def added(**kwargs: Any) -> Any:  # noqa: ANN401
    """Declare a dataclass field that came later; its default, which must stay, leaves identities as they were."""
    return dataclasses.field(metadata={_ADDED: True}, **kwargs)


def _identifies(field: dataclasses.Field, value: object) -> bool:
    """Tell whether a field with this value is part of an identity."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return not (field.metadata.get(_WHERE) or (field.metadata.get(_ADDED) and value == default))


def canonical(value: object, *, identity: bool = True) -> Any:  # noqa: ANN401
    """Return `value` as plain JSON values; with `identity`, without the fields that identify nothing.

    Raises TypeError for a value that has no stable form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: canonical(getattr(value, field.name), identity=identity)
            for field in dataclasses.fields(value)
            if not identity or _identifies(field, getattr(value, field.name))
        }
    if isinstance(value, dict):
        return {str(key): canonical(item, identity=identity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, identity=identity) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no stable form to fingerprint: {value!r}")


def fingerprint(value: object) -> str:
    """Return 8 hex digits that change exactly when an identity field of `value` changes.

    Raises InputError naming a field whose number is none, or without end: nothing can be made by it.
    """
    plain = canonical(value)
    for name, found in flatten(plain).items():
        numbers = found if isinstance(found, list) else [found]
        if any(isinstance(of, float) and not math.isfinite(of) for of in numbers):
            raise InputError(f"{name.replace('_', '-')} is {found}: give a number")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Return the leaves of nested dicts and lists by dotted name: {'train.lr': 0.001}."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        items = ((str(index), item) for index, item in enumerate(tree))
    else:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, item in items:
        leaves |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return leaves


def differences(old: Any, new: Any) -> list[str]:  # noqa: ANN401
    """Return one line for each leaf that differs: 'train.lr: 0.001 -> 0.002'."""
    before, after = flatten(old), flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in names
        if before.get(name, "(absent)") != after.get(name, "(absent)")
    ]
