"""Measures a learning curve of a linear head: every label is test once in each repetition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Rows
from labelcurve.training.forecast.law import NOISE, Points

FOLDS = 10
FEWEST_REPEATS, MOST_REPEATS = 3, 10
REPEATED = 20_000
"""Labels that all repetitions of a cross-validation test: from 2,000 on they become fewer."""
PENALTY_FOLDS = 5
SIZES = 7
SPAN = 32
"""The most labels over the fewest."""
FEWEST = 16

Progress = Callable[[float], None]
"""Receives the share that is done."""


@dataclass(frozen=True)
class Measured:
    """Correctness by repetition, test image and size."""

    sizes: NDArray[np.int64]
    """[F] labels to train on, ascending."""
    wrong: NDArray[np.bool_]
    """[R, N, F]"""
    n: int
    subsets: int
    """Training sets of each size."""
    penalty: float
    """L2 penalty of the classifier, at every size."""

    @property
    def errors(self) -> NDArray[np.float64]:
        """[F] mean errors."""
        return np.asarray(self.wrong.mean(axis=(0, 1)))

    def points(self) -> Points:
        """The curve with the covariance of its errors.

        Three parts: which images are test (the same for all sizes), which labels there are at all
        (it moves all sizes alike, too), and which subsets of them were drawn (each for itself, and
        less the more of the labels a subset holds).
        """
        share = self.wrong.mean(axis=0)
        n_test, errors = len(share), self.errors
        between = np.cov(share, rowvar=False, ddof=min(1, n_test - 1))
        covariance = np.atleast_2d(between) * (1 / n_test + NOISE / self.n)
        variance = np.maximum(errors * (1 - errors), 0.25 / n_test)
        subsets = NOISE * variance * np.maximum(0, 1 / self.sizes - 1 / self.n) / self.subsets
        # Where no image or every image is wrong, the mean is no more precise than half an image.
        covariance += np.diag(subsets + 0.25 / n_test**2)
        return Points(self.sizes.astype(np.float64), errors, covariance, self.n)


def cross_validate(
    features: Rows,
    labels: Index,
    n_classes: int,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Measured:
    """The curve up to nine tenths of the labels, by stratified 10-fold cross-validation.

    It is repeated 10 times, and with more than 2,000 labels, whose error is known well, fewer.

    Args:
        features: [N, D], as `head.standardise` gives them.
        labels: [N]
        n_classes: C
        seed: of folds and subsets.
    """
    random = np.random.default_rng(seed)
    most = len(labels) - -(-len(labels) // FOLDS)
    sizes = chosen_sizes(most, n_classes)
    penalty = best_penalty(features, labels, n_classes, random)
    repeats = _repeats(len(labels))
    wrong = np.zeros((repeats, len(labels), len(sizes)), np.bool_)
    for repeat in range(repeats):
        fold = folds(labels, FOLDS, random)
        for k in range(FOLDS):
            test, train = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            train = train[stratified(labels[train], random)]
            held = features[test], labels[test]
            wrong[repeat, test] = _wrong(
                (features, labels, n_classes), sizes, train, held, penalty, random
            )
            progress((repeat * FOLDS + k + 1) / (repeats * FOLDS))
    return Measured(sizes, wrong, len(labels), repeats * FOLDS, penalty)


def _repeats(n_labels: int) -> int:
    return min(MOST_REPEATS, max(FEWEST_REPEATS, REPEATED // n_labels))


def hold_out(
    features: Rows,
    labels: Index,
    n_classes: int,
    test: tuple[Rows, Index],
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Measured:
    """The curve up to all labels, on a test split that is given.

    Args:
        features: [N, D], as `head.standardise` gives them.
        labels: [N]
        n_classes: C
        test: features [M, D] and labels [M] of the test split.
        seed: of the subsets.
    """
    random = np.random.default_rng(seed)
    sizes = chosen_sizes(len(labels), n_classes)
    penalty = best_penalty(features, labels, n_classes, random)
    subsets = _repeats(len(labels)) * FOLDS
    wrong = np.zeros((subsets, len(test[1]), len(sizes)), np.bool_)
    for repeat in range(subsets):
        train = stratified(labels, random)
        wrong[repeat] = _wrong((features, labels, n_classes), sizes, train, test, penalty, random)
        progress((repeat + 1) / subsets)
    return Measured(sizes, wrong, len(labels), subsets, penalty)


def _wrong(
    labelled: tuple[Rows, Index, int],
    sizes: NDArray[np.int64],
    train: NDArray[np.int64],
    test: tuple[Rows, Index],
    penalty: float,
    random: np.random.Generator,
) -> NDArray[np.bool_]:
    """Which of the test images heads get wrong that learn a stretch of each size, [M, F]."""
    features, labels, n_classes = labelled
    wrong = np.empty((len(test[1]), len(sizes)), np.bool_)
    for j, size in enumerate(sizes):
        first = int(random.integers(0, len(train) - int(size) + 1))
        rows = train[first : first + size]
        fitted = head.fit(features[rows], labels[rows], n_classes, penalty)
        wrong[:, j] = fitted.scores(test[0]).argmax(axis=1) != test[1]
    return wrong


def best_penalty(
    features: Rows, labels: Index, n_classes: int, random: np.random.Generator
) -> float:
    """The penalty with the fewest errors, by one stratified 5-fold cross-validation."""
    fold = folds(labels, PENALTY_FOLDS, random)
    errors = dict.fromkeys(head.PENALTIES, 0)
    for k in range(PENALTY_FOLDS):
        test, train = fold == k, fold != k
        for penalty in errors:
            fitted = head.fit(features[train], labels[train], n_classes, penalty)
            errors[penalty] += int((fitted.scores(features[test]).argmax(1) != labels[test]).sum())
    return min(errors, key=errors.__getitem__)


def chosen_sizes(most: int, n_classes: int) -> NDArray[np.int64]:
    """Numbers of labels to train on, evenly spread in the logarithm.

    Args:
        most: labels that can be trained on.
        n_classes: the fewest are two a class.
    """
    least = min(most, max(FEWEST, 2 * n_classes, most // SPAN))
    return np.unique(np.geomspace(least, most, SIZES).round().astype(np.int64))


def stratified(labels: Index, random: np.random.Generator) -> NDArray[np.int64]:
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
