"""Two random views of each image, made for a whole batch at once on its device.

The augmentation of SimCLR (Chen et al., 2020) without blur, as is usual at 32 pixels: a crop of
random area and shape, a mirror image, and a change of colours. Brightness, contrast, saturation,
hue and greyness together are one affine map of the colours of an image, so a batch costs two
multiplications.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
YIQ = (LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))
"""Luma and two axes of colour (ITU-R BT.601): hue is an angle in the plane of the two."""


@dataclass(frozen=True)
class Views:
    """How strongly views differ."""

    size: int
    """Side of a view in pixels; smaller than the image costs less."""
    area: tuple[float, float] = (0.2, 1.0)
    """Share of the image that a crop covers."""
    flip: bool = True
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Of a full turn."""
    changed: float = 0.8
    """Probability that the colours change at all."""
    grey: float = 0.2
    """Probability of a view without colour."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Uint8 [N, 3, H, W] to one view of each, float32 [N, 3, size, size] from 0 to 1."""
        return self.recolour(self.crop(images.float() / 255, generator), generator)

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Float [N, 3, H, W] to crops of random area, place and shape, [N, 3, size, size]."""
        n = len(images)
        area = _uniform(n, *self.area, generator)
        shape = torch.exp(_uniform(n, math.log(3 / 4), math.log(4 / 3), generator))
        width = (area * shape).sqrt().clamp(max=1)
        height = (area / shape).sqrt().clamp(max=1)
        sign = torch.ones(n, device=images.device)
        if self.flip:
            sign -= 2 * (torch.rand(n, generator=generator, device=images.device) < 0.5)
        grid = torch.zeros(n, 2, 3, device=images.device)
        grid[:, 0, 0] = width * sign
        grid[:, 0, 2] = _uniform(n, -1, 1, generator) * (1 - width)
        grid[:, 1, 1] = height
        grid[:, 1, 2] = _uniform(n, -1, 1, generator) * (1 - height)
        where = F.affine_grid(grid, [n, 3, self.size, self.size], align_corners=False)
        return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)

    def recolour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Float [N, 3, H, W] from 0 to 1 to the same with other colours."""
        n, device = len(images), images.device
        yiq = torch.tensor(YIQ, device=device)
        on = (torch.rand(n, generator=generator, device=device) < self.changed).float()
        brightness = 1 + on * _uniform(n, -self.brightness, self.brightness, generator)
        contrast = 1 + on * _uniform(n, -self.contrast, self.contrast, generator)
        saturation = 1 + on * _uniform(n, -self.saturation, self.saturation, generator)
        angle = 2 * math.pi * on * _uniform(n, -self.hue, self.hue, generator)
        grey = torch.rand(n, generator=generator, device=device) < self.grey
        saturation = saturation.masked_fill(grey, 0.0)
        turn = torch.zeros(n, 3, 3, device=device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
        turn[:, 2, 1] = saturation * angle.sin()
        turn[:, 1, 2] = -turn[:, 2, 1]
        colours = torch.linalg.inv(yiq) @ turn @ yiq * (brightness * contrast)[:, None, None]
        # Contrast is about the mean luma of the image.
        middle = images.mean((2, 3)) @ yiq[0] * brightness * (1 - contrast)
        mixed = torch.einsum("nij,njhw->nihw", colours, images) + middle.view(n, 1, 1, 1)
        return mixed.clamp(0, 1)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)
