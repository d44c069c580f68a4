"""Losses for learning a feature extractor from unlabelled images."""

from __future__ import annotations

from itertools import combinations
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelcurve.training.learning.augment import Views
from labelcurve.training.models.backbones import Network, ReferenceNet
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.device import Device


class Objective(Protocol):
    """A module whose parameters are trained with the backbone's and then discarded."""

    def __call__(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of uint8 [N, 3, H, W], a scalar.

        Args:
            whole: images of the batch, where other processes have a part of it.
        """


class Contrastive(nn.Module):
    """Pulls views of one image together and pushes other images away (NT-Xent; Chen et al., 2020).

    The loss is averaged over the pairs of views. The projector ends in a batch norm.
    """

    def __init__(
        self, dim: int, views: Views, n_views: int, temperature: float, device: Device
    ) -> None:
        super().__init__()
        self.views, self.n_views, self.device = views, n_views, device
        self.projector = nn.Sequential(
            nn.Linear(dim, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 128, bias=False),
            nn.BatchNorm1d(128, affine=False),
        )
        self.temperature = temperature

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of the whole batch, against the negatives of all processes."""
        pixels = self.views(images, generator, self.n_views)
        normalised = network.standardise(pixels).contiguous(memory_format=torch.channels_last)
        with self.device.autocast():
            embedding = network.embed(normalised)
        projections = [
            distributed.gather(view, whole or len(view))
            for view in self.projector(embedding.float()).chunk(self.n_views)
        ]
        losses = [nt_xent(a, b, self.temperature) for a, b in combinations(projections, 2)]
        return torch.stack(losses).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views of each image, a scalar.

    Each row's other view is to be distinguished from all other rows of both views, by cosine.
    Source: T. Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
    2020. One product in place of four, and no mask whose entries a GPU would have to count.

    Args:
        a: float [N, D], N images.
        b: the same images.
        temperature: divides the cosines.
    """
    rows = F.normalize(torch.cat([a, b]), dim=1)
    cosines = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(rows), device=rows.device).roll(len(a))
    return F.cross_entropy(cosines, other)


class RelativePosition(nn.Module):
    """Predicts the position of a quarter of the image from it and another (the reference's task).

    The image is doubled in size and cut into four quarters; two different ones are drawn, and the
    position of the second, one of four, is predicted from the feature maps of both.
    After C. Doersch et al., Unsupervised Visual Representation Learning by Context Prediction,
    2015.
    """

    def __init__(self, size: int, device: Device) -> None:
        super().__init__()
        self.size, self.device = size, device
        side = size // 4 - 1
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * 128 * side * side, 1024),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Linear(512, 4),
        )

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of uint8 [N, 3, H, W], a scalar."""
        assert isinstance(network.backbone, ReferenceNet)
        n, size = len(images), self.size
        doubled = F.interpolate(
            images.float() / 255, scale_factor=2, mode="bilinear", align_corners=False
        )
        quarters = doubled.unfold(2, size, size).unfold(3, size, size).flatten(2, 3)
        drawn = torch.rand(n, 4, generator=generator, device=images.device).argsort(1)[:, :2]
        rows = torch.arange(n, device=images.device)[:, None]
        pair = quarters.permute(0, 2, 1, 3, 4)[rows, drawn].flatten(0, 1)
        with self.device.autocast():
            maps = network.backbone.backbone(network.standardise(pair))
            both = maps.unflatten(0, (n, 2)).flatten(1, 2)
            return F.cross_entropy(self.head(both), drawn[:, 1])
