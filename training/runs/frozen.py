"""A linear head on frozen features, and how it compares with fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelcurve.bundle.text import counted
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.data.source import Index
from labelcurve.training.learning.finetune import Labelled, Result
from labelcurve.training.learning.metrics import paired_error, scores
from labelcurve.training.models import propagation, stages, timm_weights
from labelcurve.training.models.backbones import Network, predict_logits
from labelcurve.training.models.features import features
from labelcurve.training.models.linear_head import LinearHead, fit_linear
from labelcurve.training.recipes import TUNED_FROM, Recipe
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import FP32_CPU, Device, to_device


def fit(
    network: Network,
    images: Data,
    cell: Cell,
    version: str,
    device: Device,
    *,
    cache: Path | None,
    chosen: Mapping[str, Any] | None = None,
) -> Result:
    """Replaces the network's classifier by one that is fitted on the frozen features.

    Where the recipe says so, it also learns from images without labels, unless cross-validation
    shows that they hurt.

    Args:
        network: with pretrained weights.
        version: of the weights.
        cache: folder where the features are kept; None takes the default one.
        chosen: penalty, weights of the classes and images without labels, of `LinearHead.choices`;
            None chooses them by cross-validation.
    """
    began = time.monotonic()
    rows = cell.subset.train
    others = cell.others(len(images.train)) if cell.recipe.propagation else rows[:0]
    with Bar("features") as bar:
        every = images.train.take(np.concatenate([rows, others]))
        found = features(network, every, version, device, cache=cache, on_progress=bar.update)
    embedded = time.monotonic()
    labels = images.train.labels[rows]
    head = fit_linear(
        found[: len(rows)],
        labels,
        len(images.class_names),
        penalty=None if chosen is None else chosen["penalty"],
        balanced=None if chosen is None else chosen["balanced"],
        seed=cell.seed,
    )
    say(
        f"linear head on {found.shape[1]:,} frozen features of {len(rows):,} images: "
        f"{_chosen(head, chosen is not None)}; features {embedded - began:.0f} s, head "
        f"{time.monotonic() - embedded:.0f} s"
    )
    if len(others) and (chosen is None or chosen.get("n_unlabelled")):
        head = _propagated(head, found, labels, cell.seed, chosen is not None)
    return result(network, head, time.monotonic() - began)


def _propagated(
    head: LinearHead, found: NDArray[np.float32], labels: Index, seed: int, before: bool
) -> LinearHead:
    """The head, trained on images without labels as well, unless that would be worse.

    Args:
        found: features, those of the labelled images first.
        labels: of these.
        before: the measured model was made so, and nothing is to be chosen.
    """
    began = time.monotonic()
    pool = propagation.Pool(found, labels)
    trial = None if before else pool.tried(head, seed)
    figures = (
        "as the measured model" if before else "not cross-validated, since a class has one label"
    )
    if trial is not None:
        figures = (
            f"cross-validated accuracy {trial.propagated:.4f} where the head has {trial.head:.4f}, "
            f"standard error of the difference {trial.error:.4f}"
        )
    n = f"{counted(len(found) - len(labels), 'other image')}, --no-unlabelled leaves them out"
    if trial is not None and trial.worse:
        say(f"label propagation: left out, {figures} ({n})")
        return head
    if trial is not None and trial.propagated < trial.head:
        figures += ", used because it loses less than twice that"
    head = pool.learned(head)
    say(f"label propagation: {figures} ({n}); {time.monotonic() - began:.0f} s")
    return head


def result(network: Network, head: LinearHead, seconds: float) -> Result:
    """The network with `head` as its classifier."""
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(head.weight))
        network.classifier.bias.copy_(torch.from_numpy(head.bias))
    return Result(
        network=network.cpu().float().eval(),
        history=(),
        best_epoch=0,
        epochs=0.0,
        seconds=seconds,
        micro_batches=1,
        head=head,
    )


def few(n_labels: int) -> bool:
    """Returns whether fine-tuning is skipped, since there are too few training labels; says so."""
    if n_labels >= TUNED_FROM:
        return False
    say(
        f"fine-tuning: left out, since with fewer than {TUNED_FROM:,} labels it seldom gains; "
        "--max-minutes or --epochs tries it, and publishes it if its lead exceeds the noise"
    )
    return True


def tunable(linear: Result, recipe: Recipe, images: Images) -> Network:
    """`learning`, announced as fine-tuning that must beat the linear head."""
    say(
        f"fine-tuning: the last {1 - recipe.fixed_stages:.0%} of the stages, starting from the "
        "linear head; the better of the two on validation is published. --max-minutes bounds it"
    )
    return learning(linear, recipe, images)


def learning(linear: Result, recipe: Recipe, images: Images) -> Network:
    """A trainable copy of the linear head's network, which starts from the same answers.

    Batch norm is folded into the convolutions, and the first stages are excluded from learning.

    Args:
        images: uint8 [N, H, W, 3]; a few show that the folded network is the same.
    """
    network = deepcopy(linear.network)
    few = network.normalise(to_device(np.asarray(images[:2]), FP32_CPU))
    network.backbone = stages.folded(network.backbone, few)
    if isinstance(network.backbone, timm_weights.Backbone):
        stages.fix(network.backbone.model, recipe.fixed_stages)
    return network


def better(linear: Result, tuned: Result, val: Labelled, n_labels: int) -> Result:
    """The one with the higher accuracy on validation; of equals the linear head.

    With few labels fine-tuning seldom gains, and few images validate: its lead must exceed the
    sampling noise.
    """
    logits = [
        predict_logits(each.network, val.images, FP32_CPU).astype(np.float64)
        for each in (linear, tuned)
    ]
    one, two = (scores(found, val.labels) for found in logits)
    margin, beyond = 0.0, ""
    if n_labels < TUNED_FROM:
        margin = 2 * paired_error(*(found.argmax(axis=1) == val.labels for found in logits))
        beyond = f" (its lead must exceed {margin:.4f}, twice the standard error)"
    wins = two.accuracy - one.accuracy > margin
    say(
        f"on {one.n:,} validation images the linear head has {one.accuracy:.4f} (balanced "
        f"{one.balanced_accuracy:.4f}), fine-tuning {two.accuracy:.4f} (balanced "
        f"{two.balanced_accuracy:.4f}){beyond}: "
        f"{'fine-tuning' if wins else 'the linear head'} is published"
    )
    return tuned if wins else linear


def _chosen(head: LinearHead, before: bool) -> str:
    weighted = "classes weighted equally" if head.balanced else "labels weighted equally"
    if head.accuracy is None:
        why = "as the measured model" if before else "too few labels to choose by"
        return f"penalty {head.penalty:g}, {weighted} ({why})"
    return (
        f"penalty {head.penalty:g}, {weighted}, by cross-validation (accuracy {head.accuracy:.4f}, "
        f"balanced {head.balanced_accuracy:.4f})"
    )
