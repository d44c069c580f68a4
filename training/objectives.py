"""What a feature extractor learns from images without labels: a loss on a batch of pixels."""

from __future__ import annotations

from itertools import combinations
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import distributed
from training.backbones import Network, ReferenceNet
from training.device import Device
from training.views import Views


class Objective(Protocol):
    """A module whose parameters are trained beside the backbone's and then thrown away."""

    def __call__(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of uint8 [N, 3, H, W], a scalar.

        Args:
            whole: images of the batch, where other processes have a part of it.
        """


class Contrastive(nn.Module):
    """Views of one image shall be closer than views of others (NT-Xent; Chen et al., 2020).

    The loss is lightly's, averaged over the pairs of views. The projector ends in a batch norm.
    """

    def __init__(
        self, dim: int, views: Views, n_views: int, temperature: float, device: Device
    ) -> None:
        from lightly.loss import NTXentLoss  # with torchvision's models and seconds to import

        super().__init__()
        self.views, self.n_views, self.device = views, n_views, device
        self.projector = nn.Sequential(
            nn.Linear(dim, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 128, bias=False),
            nn.BatchNorm1d(128, affine=False),
        )
        self.nt_xent = NTXentLoss(temperature=temperature)

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of the whole batch, against the negatives of all processes."""
        pixels = torch.cat([self.views(images, generator) for _ in range(self.n_views)])
        normalised = network.standardise(pixels).contiguous(memory_format=torch.channels_last)
        with self.device.autocast():
            embedding = network.embed(normalised)
        projections = [
            distributed.gather(view, whole or len(view))
            for view in self.projector(embedding.float()).chunk(self.n_views)
        ]
        losses = [self.nt_xent(a, b) for a, b in combinations(projections, 2)]
        return torch.stack(losses).mean()


class RelativePosition(nn.Module):
    """Where a quarter of the image lies, from it and another one (the reference experiment's task).

    The image is doubled in size and cut into four quarters; two different ones are drawn, and the
    position of the second, one of four, is told from the feature maps of both.
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
