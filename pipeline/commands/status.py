"""RECIPE [flags]: what is cached, what is stale and why, what is missing"""

from infra.console import say
from pipeline.make import chosen_run
from pipeline.status import status


def main(words: list[str]) -> None:
    """Print the state of each step."""
    chosen = chosen_run("status", words)
    say(status(chosen.recipe, chosen.compute, chosen.again, chosen.scanned))
