"""Every field that is a flag says what it is, in words that stand alone."""

import ast
import dataclasses
import inspect
import textwrap
import typing

import pytest
import tyro

from infra.cluster import Compute
from pipeline.commands.export import Export
from pipeline.commands.import_ import Import
from pipeline.commands.latents import Latents
from pipeline.commands.prune import Prune
from pipeline.commands.sample import Draw, OwnDraw
from pipeline.commands.ui import UI
from pipeline.make import OwnRun, Run
from pipeline.recipe import Recipe

LEANING = {"its", "of", "on", "in", "after", "among", "the same", "they"}
"""Words that a help cannot begin with when nothing stands before it."""
SHORTEST_WORDS = 3


def classes_below(kind, found):
    """Return the dataclasses in the fields of `kind`, itself among them."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
        found.append(kind)
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            if tyro.conf.Suppress not in getattr(hint, "__metadata__", ()):  # no flag
                classes_below(hint, found)
    for part in typing.get_args(kind):
        classes_below(part, found)
    return found


CLASSES: list[type] = []
for root in (Recipe, Compute, Run, OwnRun, Draw, OwnDraw, UI, Latents, Import, Export, Prune):
    classes_below(root, CLASSES)


def helps(cls):
    """Return field -> the docstring below it, or None."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    following = [*node.body[1:], ast.Pass()]
    return {
        item.target.id: text.value.value
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        else None
        for item, text in zip(node.body, following, strict=True)
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_field_has_a_help_that_stands_alone(cls):
    told = helps(cls)
    for field, text in told.items():
        assert text, f"{cls.__name__}.{field} has no help"
        words = text.split()
        assert len(words) >= SHORTEST_WORDS, f"{cls.__name__}.{field}: {text}"
        assert words[0].lower().strip(".,:;") not in LEANING, f"{cls.__name__}.{field}: {text}"
        assert text.endswith("."), f"{cls.__name__}.{field}: {text}"
    assert len(set(told.values())) == len(told), f"{cls.__name__}: two fields with the same help"
