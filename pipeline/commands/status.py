"""RECIPE [flags]: what is cached, what is stale and why, what is missing"""

from infra.console import say
from pipeline.make import recipe_and_compute
from pipeline.status import status


def main(words: list[str]) -> None:
    """Print the state of each step."""
    say(status(*recipe_and_compute("status", words)))
