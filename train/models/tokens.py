"""What a token is to a model: how it is read. Configs import no torch; what tokens are in the store is not known here.

Every token is C numbers, float32: of continuous tokens as they are, of codes whole ones (exact up to 2^24).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import nn

Form = Literal["continuous tokens", "codes"]
"""What heads draw, and say that they draw."""


@dataclass(frozen=True, kw_only=True)
class ContinuousTokens:
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


@dataclass(frozen=True, kw_only=True)
class CodeTokens:
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
        if patch_size != 1:
            raise ValueError(f"patch-size {patch_size}: a token is one code of the tokenizer's, so it must be 1")


Tokens = ContinuousTokens | CodeTokens
