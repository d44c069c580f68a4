"""Augmentation of whole batches as tensor work, on the device where the images live."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(images: Tensor, pixels: int) -> Tensor:
    """Reflects `pixels` on each side; once for all images, so that `crop_flip` only gathers.

    Args:
        images: uint8 [N, 3, H, W].

    Returns:
        uint8 [N, 3, H + 2 * pixels, W + 2 * pixels].
    """
    if pixels == 0:
        return images
    size = images.shape[-1]
    index = torch.arange(-pixels, size + pixels, device=images.device).abs()
    index = torch.where(index >= size, 2 * (size - 1) - index, index)
    return images[:, :, index][:, :, :, index].contiguous()


def crop_flip(
    padded: Tensor, rows: Tensor, size: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """A random crop of each row, mirrored left to right with probability one half.

    Args:
        padded: uint8 [N, 3, P, P], from `pad`.
        rows: int64 [B], the rows of the batch.
        size: side of the crops.
        flip: mirror at all; digits and letters must not be.
        generator: source of randomness, on the device of `padded`.

    Returns:
        uint8 [B, 3, size, size].
    """
    n, device = len(rows), padded.device
    span = padded.shape[-1] - size + 1
    shift = torch.randint(0, span, (2, n), generator=generator, device=device)
    grid = torch.arange(size, device=device)
    down = shift[0, :, None] + grid
    across = shift[1, :, None] + grid
    if flip:
        mirrored = torch.rand(n, generator=generator, device=device) < 0.5
        across = torch.where(mirrored[:, None], across.flip(1), across)
    # [B, H, W, 3] by advanced indexing, seen as channels_last [B, 3, H, W]
    pixels = padded[rows[:, None, None], :, down[:, :, None], across[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Zeroes a random square of each image (DeVries and Taylor, 2017); centres may lie at the rim.

    Args:
        images: float [B, 3, H, W], normalised, so that zero is the mean colour.
        size: side of the square in pixels; 0 leaves the images as they are.
    """
    if size == 0:
        return images
    n, side, device = len(images), images.shape[-1], images.device
    centre = torch.randint(0, side, (2, n, 1), generator=generator, device=device)
    grid = torch.arange(side, device=device)
    inside = (grid >= centre - size // 2) & (grid < centre - size // 2 + size)
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill(hole[:, None], 0.0)
