"""[flags]: what no recipe needs any more, with sizes; --remove removes it

Needed are the steps of the recipes there are (and of those named by --keep), registered models, and what these were
made from. What a process is making is never touched.
"""

from dataclasses import dataclass, field

from infra.cluster import Compute
from infra.console import say, table
from pipeline.flags import parse
from pipeline.prune import remove, unneeded
from pipeline.recipes import RECIPES
from pipeline.target import recipe_at


@dataclass(frozen=True, kw_only=True)
class Prune:
    """List what no recipe needs any more below the output root."""

    remove: bool = False
    """Remove what is listed."""
    keep: tuple[str, ...] = ()
    """More recipes to keep, each a name, a saved recipe or an artifact.json."""
    compute: Compute = field(default_factory=Compute)
    """Where the artifacts lie."""


def main(words: list[str]) -> None:
    """List or remove."""
    chosen = parse(Prune(), words, "mar prune")
    recipes = [*(recipe() for recipe in RECIPES.values()), *(recipe_at(word) for word in chosen.keep)]
    found = unneeded(recipes, chosen.compute)
    if chosen.remove:
        found = remove(found)
    rows = [(f"{item.bytes:,}", item.why, item.path) for item in found]
    say(table([*rows, (f"{sum(item.bytes for item in found):,}", "all", "")], ("bytes", "why", "folder")))
    if found and not chosen.remove:
        say("\n`mar prune --remove` removes these")
