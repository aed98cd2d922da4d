"""RECIPE [flags]: the steps up to the sweep over sampling settings"""

from pipeline.make import make_until


def main(words: list[str]) -> None:
    """Make the sweep."""
    make_until("sweep", "tune", words)
