"""Few labels on photos: all of the network learns what its linear head answers to all images.

The labels alone suffice for a linear head on frozen features. Its answers to images without labels
teach the layers below: the head sees each image as it is, the network random crops of it (Q. Xie et
al., Self-training with Noisy Student improves ImageNet classification, 2020; with soft answers, and
one round).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.special import softmax

from labelcurve.training.data.dataset import Data
from labelcurve.training.data.source import Index
from labelcurve.training.learning.finetune import Examples, Labelled, Result
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models.backbones import predict_logits
from labelcurve.training.models.features import features
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import FP32_CPU, Device


def examples(
    linear: Result,
    images: Data,
    cell: Cell,
    others: Index,
    version: str,
    device: Device,
    *,
    cache: Path | None,
) -> Examples:
    """All images with the answers of the linear head, and those that validate.

    Args:
        linear: the network with the head.
        images: the data set.
        cell: the model.
        others: rows without a label that the model may read.
        version: of the pretrained weights, for which features are kept.
        device: that computes them.
        cache: folder where they are kept; None takes the default one.
    """
    assert linear.head is not None
    rows = np.sort(np.concatenate([cell.subset.train, others]))
    split, val = images.train.take(rows), images.train.take(cell.subset.val)
    with Bar("features") as bar:
        found = features(
            linear.network, split, version, device, cache=cache, on_progress=bar.update
        )
    say(
        f"self-training: the network learns what the linear head answers to {len(rows):,} images, "
        f"{len(others):,} of them without labels; --no-unlabelled leaves it out, --max-minutes "
        "bounds it"
    )
    return Examples(
        Labelled(split.images, split.labels),
        Labelled(val.images, val.labels),
        answers=softmax(linear.head.logits(found), axis=1).astype(np.float32),
    )


def better(linear: Result, taught: Result, val: Labelled) -> Result:
    """The network that was taught, unless the linear head is better on validation."""
    if not len(val.labels):
        return taught
    one, two = (
        scores(predict_logits(each.network, val.images, FP32_CPU).astype(np.float64), val.labels)
        for each in (linear, taught)
    )
    wins = two.accuracy >= one.accuracy
    say(
        f"on {one.n:,} validation images the linear head has {one.accuracy:.4f} (balanced "
        f"{one.balanced_accuracy:.4f}), after self-training {two.accuracy:.4f} (balanced "
        f"{two.balanced_accuracy:.4f}): {'the latter' if wins else 'the linear head'} is published"
    )
    return taught if wins else linear
