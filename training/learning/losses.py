"""The loss of a batch and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelcurve.training.models.backbones import Network
from labelcurve.training.runtime.device import Device


@dataclass
class Batch:
    """Labelled images."""

    images: Tensor
    """Normalised, float32 [B, 3, H, W]."""
    targets: Tensor
    """Classes, int64 [B], or a teacher's probabilities, float32 [B, K]."""
    n: int
    """Images of the whole batch, of which these are a part: the mean is over all."""

    def split(self, parts: int) -> Iterator[Batch]:
        """Splits the batch into parts of nearly equal size."""
        pieces = (tensor.tensor_split(parts) for tensor in (self.images, self.targets))
        for images, targets in zip(*pieces, strict=True):
            yield Batch(images, targets, self.n)


def accumulate(
    network: Network, batch: Batch, parts: int, smoothing: float, device: Device
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of these images' share of the mean loss over the batch, part by part.

    Args:
        smoothing: of the classes.

    Returns:
        That share, and the number of correctly classified images, both detached scalars.
    """
    loss_sum, correct = torch.zeros((2,), device=batch.images.device)
    for part in batch.split(parts):
        with device.autocast():
            logits = network(part.images)
            loss = len(part.images) / part.n * supervised(logits, part.targets, smoothing)
        loss.backward()
        loss_sum += loss.detach()
        classes = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
        correct += (logits.detach().argmax(1) == classes).sum()
    return loss_sum, correct


def supervised(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The mean cross-entropy on classes, or on a teacher's probabilities as they are.

    Source: G. Hinton, O. Vinyals and J. Dean, Distilling the knowledge in a neural network, 2015,
    at a temperature of 1: 2 gained nothing (docs/log.md).

    Args:
        logits: float [B, K].
        targets: int64 [B], or float32 [B, K].
        smoothing: of the classes.
    """
    if targets.ndim > 1:
        return F.cross_entropy(logits, targets)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)
