"""Flags from dataclasses: the only file that imports tyro.

A field that is a union of dataclasses is switched by `--FIELD.kind KIND`; what the old and the new kind both have is
carried over. `--tokenizer KIND:PATH` is short for `--tokenizer.kind KIND --tokenizer.path PATH`, `--reference PATH` for
`--reference.path PATH`.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from infra.errors import InputError, nearest

T = TypeVar("T")
Unprefixed = Annotated[T, tyro.conf.arg(name="")]
"""A field whose own fields are flags without its name in front."""
From = Annotated[T, tyro.conf.arg(name="from")]
"""A field whose flag is `--from`, which Python keeps for itself."""
Unflagged = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]
"""A field that no flag sets."""


_SHORT = {r"^--reference(?==|$)": "--reference.path", r"^--generate\.": "--evaluate.generate."}


def parse(default: T, words: Sequence[str], prog: str, *, strict: bool = True) -> T:
    """Return `default`, a dataclass, with what the flags in `words` say; unless strict, those that it has not are left.

    Raises InputError for a kind that there is not; ends the process with code 2 for another bad flag, 0 after --help.
    """
    for short, long in _SHORT.items():
        words = [re.sub(short, long, word) for word in words]
    chosen, rest = _kinds_chosen(words)
    switched, used = _switched(default, "", chosen)
    unused = [word for flag, (_, typed) in chosen.items() if flag not in used for word in typed.split(" ", 1)]
    cli = functools.partial(
        tyro.cli, type(default), prog=prog, default=switched, description=_description(switched),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    return cli(args=[*rest, *unused]) if strict else cli(args=rest, return_unknown_args=True)[0]


def _kinds_chosen(words: Sequence[str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return the kind of each `--FIELD.kind`, with what was typed, and the other words."""
    chosen: dict[str, tuple[str, str]] = {}
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        typed, equals, value = word.partition("=")
        flag = typed.replace("_", "-")
        if flag != "--tokenizer" and not (flag.startswith("--") and flag.endswith(".kind")):
            rest.append(word)
            continue
        value = given = value if equals else next(remaining, "")
        if flag == "--tokenizer":
            value, _, path = given.partition(":")
            flag, rest = "--tokenizer.kind", [*rest, *(["--tokenizer.path", path] if path else [])]
        chosen[flag] = (value, word if equals else f"{word} {given}")
    return chosen, rest


def _switched(value: Any, prefix: str, chosen: Mapping[str, tuple[str, str]]) -> tuple[Any, set[str]]:  # noqa: ANN401
    """Return `value` with the kinds chosen, and which choices were for it."""
    changes: dict[str, Any] = {}
    used: set[str] = set()
    for field, name, options in _nested(value, prefix):
        item, flag = getattr(value, field), f"--{name}.kind"
        if options and flag in chosen:
            item, used = _as_kind(item, options, *chosen[flag]), used | {flag}
        changes[field], more = _switched(item, name, chosen)
        used |= more
    return dataclasses.replace(value, **changes), used


def _nested(value: Any, prefix: str) -> Iterator[tuple[str, str, dict[str, type]]]:  # noqa: ANN401
    """Yield the fields that hold dataclasses: name, flag without dashes, and the kinds of a union."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        if dataclasses.is_dataclass(getattr(value, field.name)):
            unprefixed = typing.get_origin(hints[field.name]) is Annotated
            own = "" if unprefixed else field.name.replace("_", "-")
            yield field.name, ".".join(part for part in (prefix, own) if part), _kinds(hints[field.name])


def _kinds(hint: Any) -> dict[str, type]:  # noqa: ANN401
    """Return kind -> class, for the class or the union of classes that say by a Literal `kind` what they are."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    members = [member for member in (typing.get_args(hint) if union else (hint,)) if dataclasses.is_dataclass(member)]
    return {
        kind: member
        for member in members
        for kind in typing.get_args(typing.get_type_hints(member).get("kind"))
    }  # fmt: skip


def _as_kind(value: Any, options: Mapping[str, type], kind: str, typed: str) -> Any:  # noqa: ANN401
    """Return a member of this kind that keeps the fields of `value` which it has too, name and type."""
    if kind not in options:
        raise InputError(f"{typed}: the kind must be one of {', '.join(options)}.{nearest(kind, options)}")
    member = options[kind]
    old, new = (typing.get_type_hints(cls) for cls in (type(value), member))
    both = {f.name for f in dataclasses.fields(member) if f.name in old and old[f.name] == new[f.name]}
    return member(**{**{name: getattr(value, name) for name in both}, "kind": kind})


def _description(value: Any) -> str:  # noqa: ANN401
    kinds = [f"--{flag}.kind {'|'.join(options)}" for flag, options in _all_kinds(value, "")]
    text = type(value).__doc__ or ""
    return text + ("\n\nKinds that can be chosen, each with fields of its own: " + ", ".join(kinds) if kinds else "")


def _all_kinds(value: Any, prefix: str) -> Iterator[tuple[str, dict[str, type]]]:  # noqa: ANN401
    for field, name, options in _nested(value, prefix):
        if options:
            yield name, options
        yield from _all_kinds(getattr(value, field), name)
