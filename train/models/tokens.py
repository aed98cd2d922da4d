"""What a token is to a model: how it is read. Configs import no torch; what tokens are in the store is not known here.

Every token is C numbers, float32: of continuous tokens as they are, of codes whole ones (exact up to 2^24).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Form = Literal["continuous tokens", "codes", "sub-pixels"]
"""What heads draw, and say that they draw."""
Layout = Literal["tokens of one grid", "codes at several scales"]
"""What trunks predict, and say that they predict."""
VALUES = 256
"""Of a sub-pixel."""
BITS_A_CODE: Mapping[str, float] = {"bits_a_code": 1 / math.log(2)}
_ALWAYS_KEPT, _HALF = 3, 0.5


class OneGrid:
    """Tokens that are the places of one square grid."""

    layout: ClassVar[Layout] = "tokens of one grid"
    together: ClassVar[Sequence[int]] = ()
    """How many tokens are drawn in each step, where that is not the sampler's choice."""

    def grid(self, side: int) -> tuple[int, int]:
        """Return rows and columns of the tokens, of so many a side."""
        return side, side

    def kept(self, places: "Tensor") -> "Tensor":
        """Return which tokens (L,) an edit keeps, of which places (S, S) of the grid it keeps."""
        return places.flatten()


@dataclass(frozen=True, kw_only=True)
class ContinuousTokens(OneGrid):
    """Real numbers, read by a linear layer."""

    kind: Literal["continuous"] = "continuous"
    """Real numbers."""
    form: ClassVar[Form] = "continuous tokens"

    def embedding(self, channels: int, width: int) -> "nn.Module":
        """Return the layer from tokens (..., C) to (..., width)."""
        from torch import nn

        return nn.Linear(channels, width)

    def size(self, channels: int) -> int:
        """Return what a head is built for, of tokens of so many numbers: so many numbers."""
        return channels

    def check(self, patch_size: int) -> None:
        """Take any patch size."""

    def likelihoods(self, channels: int) -> Mapping[str, float]:
        """Return the names of a negative log-likelihood, and the factor of each on nats a token.

        Numbers are in the model's scale, where latents have unit variance; a density has no least value.
        """
        return {"bits_a_latent_number": 1 / channels / math.log(2), "nats_a_token": 1.0}


@dataclass(frozen=True, kw_only=True)
class CodeTokens(OneGrid):
    """Indices of one codebook, read by a table."""

    kind: Literal["codes"] = "codes"
    """Indices of one codebook."""
    codebook_size: int
    """K: the codes are 0..K-1."""
    form: ClassVar[Form] = "codes"

    def embedding(self, channels: int, width: int) -> "nn.Module":  # noqa: ARG002  a code is one number
        """Return the layer from tokens (..., 1) to (..., width)."""
        from train.models.code_embedding import CodeEmbedding

        return CodeEmbedding(self.codebook_size, width)

    def size(self, channels: int) -> int:  # noqa: ARG002
        """Return what a head is built for: so many codes."""
        return self.codebook_size

    def check(self, patch_size: int) -> None:
        """Raise ValueError, beginning with the field's flag, unless a token is one code."""
        _check_patch(patch_size)

    def likelihoods(self, channels: int) -> Mapping[str, float]:  # noqa: ARG002
        """Return the name of a negative log-likelihood, and its factor on nats a token."""
        return BITS_A_CODE


@dataclass(frozen=True, kw_only=True)
class MultiScaleTokens:
    """Indices of one codebook at several scales, coarse to fine, read by what they add to a feature map."""

    kind: Literal["multi-scale codes"] = "multi-scale codes"
    """Indices of one codebook at several scales."""
    codebook_size: int
    """K: the codes are 0..K-1."""
    channels: int
    """Numbers in a vector of the codebook."""
    scales: tuple[int, ...]
    """Side of each scale's square grid, coarse to fine."""
    phis: int
    """Convolutions that the scales share."""
    form: ClassVar[Form] = "codes"
    layout: ClassVar[Layout] = "codes at several scales"

    @property
    def together(self) -> tuple[int, ...]:
        """How many tokens are drawn in each step: those of a scale."""
        return tuple(side**2 for side in self.scales)

    def grid(self, side: int) -> tuple[int, int]:  # noqa: ARG002
        """Return rows and columns of the tokens: one row for all scales."""
        return sum(self.together), 1

    def kept(self, places: "Tensor") -> "Tensor":
        """Return which codes (L,) an edit keeps, of which places (S, S) of the finest scale: all of a scale of three
        codes or fewer, and those of which more than half is kept (VAR's in- and out-painting)."""
        from torch import cat, nn, ones

        shrunk = (
            nn.functional.interpolate(places[None, None].float(), size=(side, side), mode="bilinear").flatten() > _HALF
            if side**2 > _ALWAYS_KEPT
            else ones(side**2, dtype=bool)
            for side in self.scales
        )
        return cat(list(shrunk))

    def embedding(self, channels: int, width: int) -> "nn.Module":  # noqa: ARG002  a code is one number
        """Return the layer that makes the inputs of scales out of the codes of coarser ones."""
        from train.models.scale_embedding import ScaleEmbedding

        return ScaleEmbedding(self.codebook_size, self.channels, self.scales, self.phis, width)

    def size(self, channels: int) -> int:  # noqa: ARG002
        """Return what a head is built for: so many codes."""
        return self.codebook_size

    def check(self, patch_size: int) -> None:
        """Raise ValueError, beginning with the field's flag, unless a token is one code and a scale has a next one."""
        _check_patch(patch_size)
        if len(self.scales) < 2:
            raise ValueError(f"trunk.kind next-scale: the tokenizer makes codes at one scale alone, {self.scales[0]}")

    def likelihoods(self, channels: int) -> Mapping[str, float]:  # noqa: ARG002
        """Return the name of a negative log-likelihood, and its factor on nats a token."""
        return BITS_A_CODE


@dataclass(frozen=True, kw_only=True)
class SubPixelTokens(OneGrid):
    """The sub-pixels of a pixel, or of a patch of pixels, read by a table for each."""

    kind: Literal["sub-pixels"] = "sub-pixels"
    """Whole numbers 0..255."""
    form: ClassVar[Form] = "sub-pixels"

    def embedding(self, channels: int, width: int) -> "nn.Module":
        """Return the layer from tokens (..., C) to (..., width)."""
        from train.models.code_embedding import CodeEmbedding

        return CodeEmbedding(VALUES, width, channels)

    def size(self, channels: int) -> int:
        """Return what a head is built for, of tokens of so many sub-pixels: so many."""
        return channels

    def check(self, patch_size: int) -> None:
        """Take any patch size."""

    def likelihoods(self, channels: int) -> Mapping[str, float]:
        """Return the name of a negative log-likelihood, and its factor on nats a token."""
        return {"bits_per_dimension": 1 / channels / math.log(2)}


Tokens = ContinuousTokens | CodeTokens | MultiScaleTokens | SubPixelTokens


def _check_patch(patch_size: int) -> None:
    if patch_size != 1:
        raise ValueError(f"patch-size {patch_size}: a token is one code of the tokenizer's, so it must be 1")
