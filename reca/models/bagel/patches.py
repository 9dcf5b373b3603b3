"""Images as rows of patches, and back."""

from torch import Tensor


def patchify(image: Tensor, size: int) -> Tensor:
    """(C, H, W) -> (H/p · W/p, p · p · C): patches row by row; within one: its rows, its columns, its channels.

    Raises:
        ValueError: A side is no multiple of the patch.
    """
    channels, height, width = image.shape
    if height % size or width % size or not height or not width:
        raise ValueError(f"an image of {height} x {width} cannot be cut into patches of {size} x {size}")
    cut = image.reshape(channels, height // size, size, width // size, size)
    return cut.permute(1, 3, 2, 4, 0).reshape(-1, size * size * channels)


def unpatchify(patches: Tensor, rows: int, columns: int, size: int) -> Tensor:
    """The inverse of :func:`patchify` for batches: (B, rows · columns, p · p · C) -> (B, C, rows · p, columns · p)."""
    cut = patches.reshape(len(patches), rows, columns, size, size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * size, columns * size)
