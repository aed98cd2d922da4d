""": the recipes there are"""

from dataclasses import dataclass

from infra.console import say
from pipeline.flags import parse
from pipeline.recipes import RECIPES


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""


def main(words: list[str]) -> None:
    """Print each recipe's name and first line."""
    parse(Recipes(), words, "mar recipes")
    for name, recipe in RECIPES.items():
        say(f"{name:22} {(recipe.__doc__ or '').splitlines()[0]}")
