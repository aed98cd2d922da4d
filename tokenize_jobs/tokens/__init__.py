"""What a token is, one file a kind; nothing outside asks which one it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.errors import InputError
from tokenize_jobs.tokens.codes import Codes
from tokenize_jobs.tokens.gaussian import GaussianLatents
from tokenize_jobs.tokens.kind import TokenKind
from tokenize_jobs.tokens.multiscale import MultiScaleCodes
from tokenize_jobs.tokens.plain import PlainLatents
from tokenize_jobs.tokens.sub_pixels import SubPixels

Grid = Callable[[int], TokenKind]
"""The kind of token on a square grid, by its side."""
_KINDS: Mapping[str, type[TokenKind]] = {
    "codes": Codes, MultiScaleCodes.name: MultiScaleCodes, SubPixels.column: SubPixels,
}  # fmt: skip


def read_kind(described: Mapping[str, Any]) -> TokenKind:
    """Return the kind of token that a manifest's layout describes.

    Layouts of the first stores name none: they are continuous, with or without a posterior. Raises InputError for a
    layout that is of no kind here.
    """
    fields = dict(described)
    try:
        if (named := fields.pop("kind", None)) is not None:
            return _KINDS[named](**fields)
        return (PlainLatents if fields.pop("deterministic") else GaussianLatents)(**fields)
    except (KeyError, TypeError):
        raise InputError(
            f"the store's layout is {dict(described)}, which is of no kind known here: {', '.join(_KINDS)}, or latents "
            "with or without a posterior; it was written by a later version, or its manifest is damaged"
        ) from None


def plain_grid(channels: int) -> Grid:
    """Return the kind of plain latents of so many channels."""
    return lambda side: PlainLatents(channels, side, side)


def gaussian_grid(channels: int) -> Grid:
    """Return the kind of latents of so many channels with a Gaussian posterior."""
    return lambda side: GaussianLatents(channels, side, side)


def code_grid(codebook_size: int) -> Grid:
    """Return the kind of codes of a codebook of so many vectors."""
    return lambda side: Codes(codebook_size, side, side)


def sub_pixel_grid(side: int) -> TokenKind:
    """Return the kind of sub-pixels, of an image of so many pixels a side."""
    return SubPixels(side, side)


def multi_scale_grid(codebook_size: int, channels: int, sets: Sequence[Sequence[int]], phis: int) -> Grid:
    """Return the kind of codes at the scales of that set whose last is the side of the feature map."""

    def grid(side: int) -> TokenKind:
        scales = next((scales for scales in sets if scales[-1] == side), None)
        if scales is None:
            finest = " or ".join(str(scales[-1]) for scales in sets)
            told = "fewer than" if side < min(scales[-1] for scales in sets) else "not"
            raise InputError(
                f"--tokenize.image-size: the feature map has {side} places a side, {told} the {finest} of the "
                f"finest scale: the images must be {finest} times the tokenizer's stride"
            )
        return MultiScaleCodes(codebook_size, channels, tuple(scales), phis)

    return grid
