"""RECIPE|MODEL [flags]: the steps up to the sweep over sampling settings

mar tune ./model --tokenizer kl16:/weights/kl16.ckpt --images.path /data/train --tune.kind sampling
"""

from pipeline.given import model_at
from pipeline.make import make_until


def main(words: list[str]) -> None:
    """Make the sweep of a recipe, or of a model directory."""
    make_until("sweep", "tune", words, model_at)
