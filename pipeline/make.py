"""The commands that make steps: a recipe with its flags, made up to a step."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.cluster import Compute
from pipeline.flags import Unprefixed, parse
from pipeline.recipes import Recipe
from pipeline.target import recipe_at

if TYPE_CHECKING:
    from pipeline.run import Finished


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe and where it runs. Every flag overrides what the recipe says."""

    recipe: Unprefixed[Recipe]
    compute: Compute = field(default_factory=Compute)


def recipe_and_compute(command: str, words: list[str]) -> tuple[Recipe, Compute]:
    """Return the recipe that the first word names with its overrides, and where to run it."""
    chosen = parse(Run(recipe=recipe_at(words[0])), words[1:], f"mar {command} {words[0]}")
    return chosen.recipe, chosen.compute


def make_until(last: str, command: str, words: list[str]) -> "dict[str, Finished]":
    """Make the recipe's steps up to `last`; returns them by name."""
    recipe, compute = recipe_and_compute(command, words)
    from pipeline.run import run

    return run(recipe, compute, last)
