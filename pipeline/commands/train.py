"""RECIPE|IMAGES [flags]: the steps up to the trained checkpoint"""

from pipeline.make import make_until


def main(words: list[str]) -> None:
    """Make the checkpoint."""
    make_until("checkpoint", "train", words)
