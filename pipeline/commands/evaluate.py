"""RECIPE|MODEL|IMAGES: the steps up to the evaluation, or a model or images against real ones

MODEL is a model directory, a checkpoint's artifact or models:/NAME@ALIAS; IMAGES is a folder, .tar shards or ADM's .npz
of pictures that any code made. --reference names real images, a latent store (for its images), or ADM's .npz of
statistics. A tokenizer is measured alone by --reconstruction.

    mar evaluate ./model --tokenizer kl16:/weights/kl16.ckpt --images.path /data/train
    mar evaluate models:/mar-emoji-32@champion --evaluate.generate.images 2000
    mar evaluate ./samples --reference /data/train
    mar evaluate ./samples.npz --reference /data/VIRTUAL_imagenet256_labeled.npz
    mar evaluate /data/val --reconstruction --tokenizer kl16:/weights/kl16.ckpt
"""

from pipeline.given import measurable_at
from pipeline.make import make_until

_RECONSTRUCTION = "--reconstruction"


def main(words: list[str]) -> None:
    """Make the evaluation of a recipe, a model or images, or measure a recipe's tokenizer."""
    if _RECONSTRUCTION in words:
        make_until("reconstruction", "evaluate", [word for word in words if word != _RECONSTRUCTION])
    else:
        make_until("evaluation", "evaluate", words, measurable_at)
