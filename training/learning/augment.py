"""Augmentation of whole batches with tensor operations, on the device of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
YIQ = (LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))
"""Luma and two chroma axes (ITU-R BT.601): hue is an angle in the plane of the two."""


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


@dataclass(frozen=True)
class Views:
    """Random views of images for contrastive learning.

    The augmentation of SimCLR (Chen et al., 2020) without blur, as is usual at 32 pixels: a crop of
    random area and shape, a mirror image, and colour jitter. Brightness, contrast, saturation, hue
    and greyscale together are one affine map of an image's colours, so a batch costs two
    multiplications.
    """

    size: int
    """Side of a view in pixels; smaller than the image costs less."""
    area: tuple[float, float] = (0.2, 1.0)
    """Share of the image that a crop covers, from and to."""
    flip: bool = True
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Share of a full turn."""
    changed: float = 0.8
    """Probability that the colours change at all."""
    grey: float = 0.2
    """Probability of a view without colour."""

    def __call__(self, images: Tensor, generator: torch.Generator, n_views: int = 1) -> Tensor:
        """Uint8 [N, 3, H, W] to views of each, float32 [n_views * N, 3, size, size] from 0 to 1.

        The first views of all images come first, then the second ones. Nothing in it waits for a
        GPU: its numbers are drawn there at once, and its constants are copied there once.
        """
        drawn = torch.rand(n_views, N_DRAWN, len(images), generator=generator, device=images.device)
        drawn = drawn.transpose(0, 1).flatten(1)
        pixels = (images.float() / 255).repeat(n_views, 1, 1, 1)
        return self._recoloured(self._cropped(pixels, drawn[:N_CROP]), drawn[N_CROP:])

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Float [N, 3, H, W] to crops of random area, place and shape, [N, 3, size, size]."""
        shape = (N_CROP, len(images))
        return self._cropped(images, torch.rand(shape, generator=generator, device=images.device))

    def recolour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Float [N, 3, H, W] from 0 to 1 to the same with other colours."""
        shape = (N_DRAWN - N_CROP, len(images))
        return self._recoloured(
            images, torch.rand(shape, generator=generator, device=images.device)
        )

    def _cropped(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Crops, by numbers from 0 to 1, [5, N]: area, shape, mirror, place across and down."""
        on = _constants(self, images.device)
        area, shape = torch.addcmul(on.crop_low[:2], on.crop_span[:2], drawn[:2])
        # Width and height, as shares of the image's: area times and by the ratio of the two.
        extent = (area * torch.exp(shape * on.signs)).sqrt().clamp(max=1)
        place = torch.addcmul(on.crop_low[2:], on.crop_span[2:], drawn[3:5]) * (1 - extent)
        if self.flip:
            extent = extent * torch.where(drawn[2] < 0.5, on.mirror, on.straight)
        scale, shift = extent.T[:, None, None], place.T[:, None, None]
        where = torch.addcmul(shift, on.grid, scale)
        return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)

    def _recoloured(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Other colours, by numbers from 0 to 1, [6, N]: changed, strengths of four, grey."""
        on = _constants(self, images.device)
        changes = torch.addcmul(on.colour_low, on.colour_span, drawn[1:5])
        changes = changes * (drawn[0] < self.changed)
        brightness, contrast, saturation = (1 + changes[:3]).unbind()
        angle = changes[3]
        both = brightness * contrast
        strength = (both * saturation).masked_fill(drawn[5] < self.grey, 0.0)
        # Luma stays, the two chroma axes turn and shrink: three fixed matrices with three weights.
        weights = torch.stack([both, strength * angle.cos(), strength * angle.sin()], 1)
        colours = (weights @ on.basis).view(-1, 3, 3)
        # Contrast is about the mean luma of the image.
        middle = images.mean((2, 3)) @ on.luma * (brightness - both)
        mixed = torch.baddbmm(middle[:, None, None], colours, images.flatten(2))
        return mixed.view_as(images).clamp(0, 1)


N_CROP, N_DRAWN = 5, 11
"""Random numbers of an image's crop, and of all of its view."""


@dataclass(frozen=True)
class _Constants:
    """Constants for making views, on their device."""

    crop_low: Tensor
    """[4, 1]: of the area, the logarithm of the shape, and the places."""
    crop_span: Tensor
    colour_low: Tensor
    """[4, 1]: of brightness, contrast, saturation and angle."""
    colour_span: Tensor
    signs: Tensor
    """[2, 1]: the shape makes wider what it makes lower."""
    mirror: Tensor
    """[2, 1]"""
    straight: Tensor
    grid: Tensor
    """[1, size, size, 2]: where the pixels of a crop of everything lie."""
    basis: Tensor
    """[3, 9]: matrices of colours that keep luma, keep chroma, and turn it by a quarter."""
    luma: Tensor
    """[3]"""


@cache
def _constants(views: Views, device: torch.device) -> _Constants:
    """Returns the constants for these views, copied to the device at the first call."""

    def column(*values: float) -> Tensor:
        return torch.tensor(values)[:, None].to(device)

    shape = math.log(4 / 3)
    strengths = (
        views.brightness,
        views.contrast,
        views.saturation,
        2 * math.pi * views.hue,
    )
    yiq = torch.tensor(YIQ, dtype=torch.float64)
    back = torch.linalg.inv(yiq)
    keep_luma, keep_chroma, turn = torch.zeros(3, 3, 3, dtype=torch.float64)
    keep_luma[0, 0] = keep_chroma[1, 1] = keep_chroma[2, 2] = 1
    turn[2, 1], turn[1, 2] = 1, -1
    basis = torch.stack([back @ part @ yiq for part in (keep_luma, keep_chroma, turn)])
    whole = F.affine_grid(
        torch.eye(2, 3)[None], [1, 3, views.size, views.size], align_corners=False
    )
    return _Constants(
        crop_low=column(views.area[0], -shape, -1, -1),
        crop_span=column(views.area[1] - views.area[0], 2 * shape, 2, 2),
        colour_low=column(*(-each for each in strengths)),
        colour_span=column(*(2 * each for each in strengths)),
        signs=column(1, -1),
        mirror=column(-1, 1),
        straight=column(1, 1),
        grid=whole.to(device),
        basis=basis.flatten(1).float().to(device),
        luma=yiq[0].float().to(device),
    )
