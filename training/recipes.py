"""Hyperparameters of the fine-tuning, by preset and by the number of labels.

Chosen on validation rows of CIFAR-10 with `--no-test`; see docs/log.md for what was tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Preset = Literal["default", "reference"]


@dataclass(frozen=True)
class Recipe:
    """What `training.finetune` needs to know."""

    backbone: Literal["resnet9", "reference"]
    optimizer: Literal["sgd", "adam"]
    lr: float
    """Peak learning rate."""
    schedule: Literal["triangle", "plateau"]
    """`triangle`: up over the first fifth, then linearly to zero at the last epoch. `plateau`:
    constant, halved after `plateau_patience` epochs without a better validation loss."""
    epochs: int
    """At most; `patience` may end the run before."""
    patience: int
    """Stop after so many epochs without a better validation result."""
    batch_size: int
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    crop: int = 0
    """Random shift by up to so many pixels, at an image size of 32."""
    flip: bool = False
    cutout: int = 0
    """Side of the erased square in pixels, at an image size of 32."""
    ema: float = 0.0
    """Decay of the averaged weights an epoch; 0 keeps the trained weights themselves."""
    plateau_patience: int = 3
    normalise: bool = True
    """By the mean and standard deviation of the training images; else to [0, 1]."""

    def with_epochs(self, epochs: int) -> Recipe:
        """The same with another number of epochs."""
        return replace(self, epochs=epochs)


def recipe(preset: Preset, n_labels: int, flip: bool) -> Recipe:
    """The recipe for a number of training labels.

    Args:
        preset: `reference` is the reference experiment's fine-tuning (docs/reference.md).
        n_labels: labelled training images.
        flip: whether mirrored images keep their class.
    """
    if preset == "reference":
        return Recipe(
            backbone="reference",
            optimizer="adam",
            lr=5e-4,
            schedule="plateau",
            epochs=50,
            patience=6,
            batch_size=256,
            normalise=False,
        )
    # At least some 16 steps an epoch, so that few labels still make a run.
    batch_size = min(128, max(16, 2 ** round(math.log2(max(1, n_labels / 16)))))
    return Recipe(
        backbone="resnet9",
        optimizer="sgd",
        lr=0.1 * batch_size / 128,
        schedule="triangle",
        epochs=_epochs(n_labels),
        patience=15,
        batch_size=batch_size,
        weight_decay=1e-3,
        label_smoothing=0.1,
        crop=4,
        flip=flip,
        cutout=12,
        ema=0.9,
    )


def _epochs(n_labels: int) -> int:
    """Fewer labels are seen more often: 450,000 images in a run, but none more than 44 times."""
    return min(44, max(10, 450_000 // n_labels))
