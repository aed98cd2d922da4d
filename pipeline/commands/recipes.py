""": the recipes there are"""

from dataclasses import dataclass

from infra.console import say
from pipeline.flags import parse
from pipeline.own_images import SIZES
from pipeline.recipes import RECIPES


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""


def main(words: list[str]) -> None:
    """Print each recipe's name and first line."""
    parse(Recipes(), words, "mar recipes")
    for name, recipe in RECIPES.items():
        say(f"{name:22} {(recipe.__doc__ or '').splitlines()[0]}")
    for name, size in SIZES.items():
        say(f"{name:22} Your own images (`--images.path`) at {size} px, within a `--budget`: minutes, hour or day.")
