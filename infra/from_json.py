"""JSON -> frozen config: the way back from `infra.fingerprint.canonical`, refusing what does not fit."""

import dataclasses
import functools
import json
import types
import typing
from typing import Any, TypeVar

import cattrs
from cattrs.errors import BaseValidationError
from cattrs.v import format_exception

from infra.errors import InputError

T = TypeVar("T")


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
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ValueError(f"expected fields by name, got {str(tree)[:50]!r}")
        return (_CONVERTER if strict else _LENIENT).structure(tree, kind)
    except (ValueError, TypeError, BaseValidationError) as error:
        detail = (
            cattrs.transform_error(error, format_exception=_reason)[0]
            if isinstance(error, BaseValidationError)
            else str(error)
        )
        raise InputError(f"{origin}: {detail}") from None
