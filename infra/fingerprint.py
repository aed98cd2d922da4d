"""Frozen config -> canonical JSON -> fingerprint: what a result depends on, and nothing of where it ran.

A dataclass field made with `where()` (a path, a worker count) is left out, and so is one made with `added()` while it
has its default: what was made before the field existed stays what it is. Values without a stable form (callables,
sets, arbitrary objects) are refused, so that no memory address leaks into an identity.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

import cattrs
from cattrs.errors import BaseValidationError
from cattrs.v import format_exception

from infra.errors import InputError

_WHERE, _ADDED = "where", "added"
T = TypeVar("T")


def where(**kwargs: Any) -> Any:  # noqa: ANN401
    """Declare a dataclass field that says where something is, not what it is: never fingerprinted."""
    return dataclasses.field(metadata={_WHERE: True}, **kwargs)


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
    """Return 8 hex digits that change exactly when an identity field of `value` changes."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
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


def _same_type(value: object, kind: type) -> object:
    """Take a JSON value for a field of type `kind` only if it has that type (an int may stand for a float)."""
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return kind(value)


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_LENIENT = cattrs.Converter()
for _kind in (int, float, str, bool):
    for _converter in (_CONVERTER, _LENIENT):
        _converter.register_structure_hook(_kind, _same_type)


def _is_dataclass_union(kind: object) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union) and all(
        dataclasses.is_dataclass(option) for option in typing.get_args(kind)
    )


def _structure_union(value: Any, kind: Any, converter: cattrs.Converter) -> Any:  # noqa: ANN401
    """Choose the member of a union of dataclasses whose field `kind`, a Literal, admits what `value` names."""
    options = {
        name: option
        for option in typing.get_args(kind)
        for name in typing.get_args(typing.get_type_hints(option)["kind"])
    }
    named = value.get("kind") if isinstance(value, dict) else None
    if named not in options:
        raise ValueError(f"'kind' must be one of {', '.join(options)}, not {named!r}")
    return converter.structure(value, options[named])


for _converter in (_CONVERTER, _LENIENT):
    _converter.register_structure_hook_func(
        _is_dataclass_union, functools.partial(_structure_union, converter=_converter)
    )


def _reason(error: BaseException, kind: type | None) -> str:
    return str(error) if type(error) is ValueError else format_exception(error, kind)


def from_json(text: str, kind: type[T], origin: str, *, strict: bool = True) -> T:
    """Read a dataclass tree back from JSON, refusing wrong types and, if `strict`, unknown fields.

    Raises InputError naming `origin` (a file) and the first offending field.
    """
    try:
        return (_CONVERTER if strict else _LENIENT).structure(json.loads(text), kind)
    except (ValueError, TypeError, BaseValidationError) as error:
        detail = (
            cattrs.transform_error(error, format_exception=_reason)[0]
            if isinstance(error, BaseValidationError)
            else str(error)
        )
        raise InputError(f"{origin}: {detail}") from None
