"""The commands that make steps: a recipe with its flags, made up to a step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.cluster import Compute
from infra.console import say
from infra.errors import InputError, nearest
from pipeline.deciding import CODE
from pipeline.flags import Unprefixed, parse
from pipeline.recipes import Recipe
from pipeline.target import recipe_at

if TYPE_CHECKING:
    from pipeline.steps import Finished


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe and where it runs. Every flag overrides what the recipe says."""

    recipe: Unprefixed[Recipe]
    """What is made."""
    compute: Compute = field(default_factory=Compute)
    """Where the steps are made, and where the results lie."""
    again: tuple[str, ...] = ()
    """Steps to make anew by the present code, and with them what follows from them."""
    plan: bool = False
    """Say what would be made, with estimated hours and bytes, and make nothing."""


def chosen_run(command: str, words: list[str], recipe: Callable[[str], Recipe] = recipe_at) -> Run:
    """Return the `recipe` of the first word with its overrides, where to run it, and what to make anew.

    Raises InputError for a step that there is not.
    """
    chosen = parse(Run(recipe=recipe(words[0])), words[1:], f"mar {command} {words[0]}")
    if unknown := set(chosen.again) - set(CODE):
        raise InputError(
            f"--again {min(unknown)}: no such step.{nearest(min(unknown), CODE)} There are {', '.join(CODE)}."
        )
    return chosen


def make_until(
    last: str, command: str, words: list[str], recipe: Callable[[str], Recipe] = recipe_at
) -> "dict[str, Finished]":
    """Make the steps up to `last` of the `recipe` of the first word; returns them by name."""
    chosen = chosen_run(command, words, recipe)
    if chosen.plan:
        from pipeline.estimate import estimate

        say(estimate(chosen.recipe, chosen.compute, last, chosen.again))
        return {}
    from pipeline.run import run

    return run(chosen.recipe, chosen.compute, last, chosen.again)
