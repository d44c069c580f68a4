"""The supervised and the consistency loss of a batch, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelcurve.training.models.backbones import Network
from labelcurve.training.recipes import Recipe
from labelcurve.training.runtime.device import Device


@dataclass
class Batch:
    """Labelled images, and optionally unlabelled ones."""

    images: Tensor
    """Normalised, float32 [B, 3, H, W]."""
    targets: Tensor
    """Classes, int64 [B], or a teacher's probabilities, float32 [B, K]."""
    n: int
    """Labelled images of the whole batch, of which these are a part: the mean is over all."""
    n_others: int = 0
    """Unlabelled images of the whole batch, likewise."""
    others: Tensor | None = None
    """Images without labels as they are, uint8 [C, 3, H, W]."""
    views: Tensor | None = None
    """The same, changed and normalised."""

    def split(self, parts: int) -> Iterator[Batch]:
        """Splits the batch into parts of nearly equal size."""
        fields = (self.images, self.targets, self.others, self.views)
        pieces = [
            [None] * parts if tensor is None else tensor.tensor_split(parts) for tensor in fields
        ]
        for images, targets, others, views in zip(*pieces, strict=True):
            assert images is not None
            assert targets is not None
            yield Batch(images, targets, self.n, self.n_others, others, views)


def accumulate(
    network: Network,
    teacher: Network,
    batch: Batch,
    parts: int,
    recipe: Recipe,
    device: Device,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of these images' share of the mean loss over the batch, part by part.

    Returns:
        That share, and the number of correctly classified images, both detached scalars.
    """
    loss_sum, correct = torch.zeros((2,), device=batch.images.device)
    for part in batch.split(parts):
        share = len(part.images) / part.n
        if part.others is not None and part.views is not None:
            weight = recipe.consistency * len(part.others) / part.n_others
            loss, logits = _semi_supervised(network, teacher, part, share, weight, recipe, device)
        else:
            with device.autocast():
                logits = network(part.images)
                loss = share * supervised(logits, part.targets, recipe.label_smoothing)
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


def _semi_supervised(
    network: Network,
    teacher: Network,
    batch: Batch,
    share: float,
    weight: float,
    recipe: Recipe,
    device: Device,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the labels, and on the averaged network's predictions of unlabelled images.

    The teacher sees the image as it is, the student an augmented view; images whose teacher
    prediction is below the confidence threshold do not count.
    Sources: A. Tarvainen and H. Valpola, Mean teachers, 2017; K. Sohn et al., FixMatch, 2020.

    Args:
        share: weight of the labelled images.
        weight: of the others.

    Returns:
        The loss, and the logits of the labelled images.
    """
    assert batch.others is not None
    assert batch.views is not None
    teacher.eval()
    with torch.no_grad(), device.autocast():
        seen = network.normalise(batch.others)
        guess = torch.softmax(teacher(seen).float() / recipe.sharpening, dim=1)
    network.train()  # without averaged weights it is the teacher, too
    sure = (guess.amax(1) >= recipe.confidence).float()
    with device.autocast():
        logits = network(torch.cat([batch.images, batch.views]))
    own, theirs = logits.float().split([len(batch.images), len(batch.views)])
    loss = share * supervised(own, batch.targets, recipe.label_smoothing)
    if len(theirs):  # other processes may have all, where they are few
        loss = loss + weight * (F.cross_entropy(theirs, guess, reduction="none") * sure).mean()
    return loss, own
