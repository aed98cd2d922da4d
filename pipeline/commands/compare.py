"""A B ... [flags]: several evaluations on one page: numbers, what differs, samples, losses

Each is a recipe, a saved recipe, an artifact.json, or a registered version:

    mar compare models:/mar-emoji-32@champion models:/mar-emoji-32@challenger
"""

import itertools
from dataclasses import dataclass, field

from infra.cluster import Compute
from infra.console import complain, say
from infra.errors import InputError
from infra.storage import location
from pipeline.flags import parse


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Write one self-contained page that compares evaluations."""

    to: str = "comparison.html"
    """The page to write."""
    compute: Compute = field(default_factory=Compute)
    """Where the artifacts are."""


def main(words: list[str]) -> None:
    """Write the page and print its path. Raises InputError for fewer than two, and for what was not evaluated."""
    targets = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    chosen = parse(Compare(), words[len(targets) :], "mar compare A B")
    if len(targets) < 2:
        raise InputError("mar compare needs at least two: recipes, artifact.json files or models:/NAME@ALIAS")
    from pipeline.comparison import measured, warnings, write_comparison

    compared, page = [measured(word, chosen.compute) for word in targets], location(chosen.to)
    write_comparison(compared, page, chosen.compute)
    for warning in warnings(compared):
        complain(f"warning: {warning}")
    say(str(page))
