"""RECIPE [flags]: every step, from the pictures to the registered model

A finished step is cached and never redone; an interrupted one goes on where it was.
"""

from pipeline.make import make_until


def main(words: list[str]) -> None:
    """Make all steps."""
    make_until("registration", "run", words)
