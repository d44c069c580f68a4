"""Labels on which a curve is measured: sizes, folds and subsets, all stratified by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data.source import Index

SIZES = 7
SPAN = 32
"""The most labels over the fewest."""
FEWEST = 16


def sizes(most: int, n_classes: int) -> NDArray[np.int64]:
    """Numbers of labels to train on, evenly spread in the logarithm.

    Args:
        most: labels that can be trained on.
        n_classes: the fewest are two a class.
    """
    least = min(most, max(FEWEST, 2 * n_classes, most // SPAN))
    return np.unique(np.geomspace(least, most, SIZES).round().astype(np.int64))


def order(labels: Index, random: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the rows in which each stretch is about stratified."""
    key = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        key[rows] = (np.arange(len(rows)) + random.random(len(rows))) / len(rows)
    return np.argsort(key, kind="stable")


def folds(labels: Index, k: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each row: sizes differ by one at most, in each class, too."""
    found = np.empty(len(labels), np.int64)
    turn, dealt = random.permutation(k), 0
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        found[rows] = turn[(dealt + np.arange(len(rows))) % k]
        dealt += len(rows)
    return found
