"""Hyperparameters of pretraining and fine-tuning, by preset and by the number of images.

Chosen on validation rows of CIFAR-10 with `--no-test`; see docs/log.md for what was tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Preset = Literal["default", "reference"]
Backbone = str
"""`convnet`, `reference`, `timm:NAME` or `torchvision:NAME`; with `/2` after it the same on the
means of squares of 2 x 2 pixels, which are part of the graph."""
TIMM, TORCHVISION = "timm:", "torchvision:"
LIBRARIES = (TIMM, TORCHVISION)
"""Beginnings of names of networks that come with weights learned elsewhere."""
PHOTO_BACKBONE = "timm:tf_efficientnet_lite0.in1k"
"""Default backbone for photos: 4.7 million parameters, Apache-2.0 (docs/photos.md)."""

TUNED_FROM = 1_000
"""Training labels from which such a network is fine-tuned, unless requested (docs/log.md); with
fewer labels its linear head also learns from images without labels."""

MOST_UNLABELLED = 5_000
"""Images without labels, at most, from which a linear head learns."""

Objective = Literal["contrastive", "relative-position"]

COOLING = 0.25
"""Share of each part of an extendable pretraining in which the learning rate falls to zero."""


def divided(backbone: Backbone) -> tuple[Backbone, int]:
    """`convnet/4` as `convnet` and 4; without a divisor it is 1."""
    name, _, factor = backbone.partition("/")
    return name, int(factor or 1)


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Hyperparameters of `training.learning.optimizers`."""

    optimizer: Literal["muon", "sgd", "adam"]
    """`muon` takes Adam for vectors, that is biases and batch norm."""
    lr: float
    """Peak learning rate."""
    lr_vectors: float = 0.0
    """Peak learning rate of vectors with `muon`."""
    momentum: float = 0.9
    weight_decay: float = 0.0
    """Weight decay of parameters with two and more dimensions."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises from zero."""
    decay: float = 0.0
    """Share of the run, at its end, in which the learning rate falls to zero."""


@dataclass(frozen=True, kw_only=True)
class Pretraining(Optimisation):
    """Hyperparameters of `training.learning.pretrain` and its objective."""

    objective: Objective
    backbone: Backbone
    epochs: float
    batch_size: int
    n_views: int
    """Images that pass through the backbone for each image of the batch."""
    view_share: float = 1.0
    """Side of a view over the side of the image."""
    temperature: float = 0.2
    extendable: bool = False
    """Keeps the state from before the decay, so that a later run can resume from there."""


def extendable(recipe: Pretraining) -> Pretraining:
    """The recipe for a run that later runs continue: a short decay, since each of them repeats it.

    Source: A. Hägele et al., Scaling laws and compute-optimal training beyond fixed training
    durations, 2024 (warm-up, constant, cooldown).
    """
    return replace(recipe, extendable=True, decay=COOLING)


def pretraining(objective: Objective, n_images: int, size: int) -> Pretraining:
    """The recipe to learn an extractor from a number of images without labels.

    Args:
        objective: `relative-position` is the reference experiment's (docs/reference.md).
        n_images: to learn from.
        size: side of the images in pixels.
    """
    if objective == "relative-position":
        return Pretraining(
            objective=objective,
            backbone="reference",
            optimizer="adam",
            lr=5e-4,
            epochs=25,
            batch_size=256,
            n_views=2,
        )
    return Pretraining(
        objective=objective,
        backbone="convnet",
        optimizer="muon",
        lr=0.02,
        lr_vectors=2e-3,
        momentum=0.95,
        warmup=0.05,
        decay=0.7,
        epochs=100,
        batch_size=min(512, max(32, n_images // 8)),
        n_views=2,
        view_share=0.75,
    )


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimisation):
    """Hyperparameters of `training.learning.finetune`."""

    backbone: Backbone
    schedule: Literal["linear", "plateau"]
    """`linear`: `warmup` and `decay`. `plateau`: constant, halved after `plateau_patience` epochs
    without a better validation loss."""
    epochs: int
    """At most; `patience` may end the run before."""
    patience: int
    """Stop after so many epochs without a better validation result."""
    batch_size: int
    label_smoothing: float = 0.0
    crop: int = 0
    """Random shift by up to so many pixels, at an image size of 32."""
    flip: bool = False
    mirrored: bool = False
    """Whether the published graph answers with the mean over an image and its mirror image."""
    area: float = 1.0
    """Below 1: random crops cover this share of an image and more, in place of shifts."""
    view_share: float = 1.0
    """Side of such a crop over the side of the image."""
    fixed_stages: float = 0.0
    """Share of the backbone's stages, the first ones, that stay as they are."""
    ema: float = 0.0
    """Decay of the averaged weights an epoch; 0 keeps the trained weights themselves."""
    plateau_patience: int = 3
    backbone_lr: float = 1.0
    """Factor on the learning rates of the backbone; the classifier has them as they are."""
    unlabelled: bool = False
    """Whether a network also learns what its teacher answers to images without labels."""
    propagation: bool = False
    """Whether the linear head also learns from images without labels, by label propagation
    (`training.models.propagation`)."""


def recipe(
    preset: Preset, n_labels: int, *, flip: bool, unlabelled: bool, extractor: str = "auto"
) -> Recipe:
    """The recipe for a number of training labels.

    Args:
        preset: `reference` is the reference experiment's fine-tuning (docs/reference.md).
        n_labels: labelled training images.
        flip: whether mirrored images keep their class.
        unlabelled: whether there are images without labels, from which a linear head learns.
        extractor: `timm:NAME[=FILE]` or `torchvision:NAME[=FILE]` sets the network, whose last
            stages learn on random crops, at a lower learning rate than the classifier.
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
        )
    # At least some 16 steps an epoch, so that few labels still make a run.
    batch_size = min(128, max(16, 2 ** round(math.log2(max(1, n_labels / 16)))))
    plan = Recipe(
        backbone="convnet",
        optimizer="muon",
        lr=0.06 * math.sqrt(batch_size / 128),
        lr_vectors=2e-3,
        schedule="linear",
        warmup=0.1,
        decay=0.9,
        epochs=min(40, max(5, round(work(n_labels) / n_labels))),
        patience=0,
        batch_size=batch_size,
        label_smoothing=0.1,
        crop=2,
        flip=flip,
        ema=0.9,
    )
    if extractor.startswith(LIBRARIES):
        return replace(
            plan,
            backbone=extractor.partition("=")[0],
            optimizer="adam",
            lr=1e-3,
            backbone_lr=0.3,
            epochs=max(3, min(8, round(16_000 / n_labels))),
            batch_size=min(32, batch_size),
            crop=0,
            area=0.35,
            view_share=5 / 7,
            fixed_stages=0.75,
            propagation=unlabelled and n_labels < TUNED_FROM,
        )
    return plan


def distillation(backbone: Backbone, n_images: int, *, flip: bool, unlabelled: bool) -> Recipe:
    """The recipe for distillation from a teacher.

    Args:
        backbone: of the network that learns them.
        n_images: that the teacher answers.
        flip: whether mirrored images keep their class.
        unlabelled: whether images without labels are among them.
    """
    plan = recipe("default", n_images, flip=flip, unlabelled=False, extractor=backbone)
    return replace(
        plan,
        backbone=backbone,
        unlabelled=unlabelled,
        fixed_stages=0.0,
    )


def work(n_labels: int) -> float:
    """Images that pass through the network in a run: more with more labels, but not as many more.

    On two CPU cores 3 minutes for 4,500 labels, 8 for 22,500 and 13 for 45,000.
    """
    return 148_000 * math.pow(n_labels / 4_500, 0.63)
