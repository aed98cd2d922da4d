"""What is evaluated."""

from dataclasses import dataclass

from tokenize_jobs.config import TokenizerFile


@dataclass(frozen=True)
class Subject:
    """A model directory, the tokenizer of its latents, and which of its weights draw."""

    model: str
    weights: TokenizerFile
    image_size: int
    use_ema: bool = True
    """The averaged ones, not the raw ones."""
