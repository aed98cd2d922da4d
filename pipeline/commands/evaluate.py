"""RECIPE|MODEL [flags]: the steps up to the evaluation, or a model against real images

mar evaluate ./model --tokenizer kl16:/weights/kl16.ckpt --images.path /data/train
"""

from pipeline.make import make_until
from pipeline.target import model_at


def main(words: list[str]) -> None:
    """Make the evaluation of a recipe, or of a model directory."""
    make_until("evaluation", "evaluate", words, model_at)
