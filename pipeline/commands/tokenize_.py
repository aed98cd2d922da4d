"""RECIPE|IMAGES [flags]: the steps up to the latents, of a recipe or of your own images

IMAGES holds .tar shards (WebDataset), .parquet files or class folders; say with which tokenizer and at which size:

    mar tokenize /data/train --tokenizer kl16:/weights/kl16.ckpt --tokenize.image-size 256
"""

from infra.console import say
from pipeline.make import make_until


def main(words: list[str]) -> None:
    """Make the latents and say where they are."""
    done = make_until("latents", "tokenize", words)
    if done:
        say(str(done["latents"].artifact.path))
