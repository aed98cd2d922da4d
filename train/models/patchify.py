"""Latents (B, C, H, W) <-> tokens (B, L, D): row-major over patches, channel slowest inside a token."""

from torch import Tensor


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Turn latents (B, C, H, W) into tokens (B, H/p * W/p, C * p * p).

    Inside a token the index is c*p*p + row*p + column, as in the published implementation.
    """
    batch, channels, height, width = latents.shape
    rows, columns, p = height // patch_size, width // patch_size, patch_size
    patches = latents.reshape(batch, channels, rows, p, columns, p)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * p * p)


def unpatchify(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Turn tokens (B, L, D) of a grid of rows and columns back into latents (B, D/p/p, H, W)."""
    batch, _, width = tokens.shape
    (rows, columns), p = grid, patch_size
    patches = tokens.reshape(batch, rows, columns, width // (p * p), p, p)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // (p * p), rows * p, columns * p)
