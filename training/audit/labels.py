"""Doubtful labels, by out-of-fold probabilities of a linear head.

Confident learning says how many there are, self-confidence and margin say which. Source: C.
Northcutt, L. Jiang, I. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR
2021, as cleanlab implements it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Rows
from labelcurve.training.forecast.measurement import Progress, folds

FOLDS = 5
REPEATS = 3
"""Cross-validations whose scores are averaged."""


@dataclass(frozen=True)
class Judged:
    """Cross-validated judgement of each label."""

    probabilities: NDArray[np.float64]
    """[N, C] of a head that has not seen the image."""
    doubtful: NDArray[np.bool_]
    """[N] Those of the lowest quality, as many as confident learning finds."""
    quality: NDArray[np.float64]
    """[N] Mean of the label's probability (self-confidence) and its normalised margin, from 0
    (certainly wrong) to 1."""


def scores(
    features: Rows,
    labels: Index,
    n_classes: int,
    *,
    groups: Index | None = None,
    used: NDArray[np.bool_] | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> NDArray[np.float64]:
    """Out-of-fold scores of a linear head, mean of `REPEATS` stratified cross-validations, [N, C].

    Args:
        features: [N, D], as `head.standardise` gives them.
        labels: [N]
        n_classes: C
        groups: [N] images with the same number are in one fold: copies do not judge each other.
            None puts each image into a separate group.
        used: [N] images that a head may learn from; None means all. All of them are judged.
        seed: of the folds.
    """
    random = np.random.default_rng(seed)
    found = np.zeros((len(labels), n_classes))
    used = np.ones(len(labels), bool) if used is None else used
    first = None if groups is None else np.unique(groups, return_index=True, return_inverse=True)
    for repeat in range(REPEATS):
        if first is None:
            fold = folds(labels, FOLDS, random)
        else:
            fold = folds(labels[first[1]], FOLDS, random)[first[2]]
        for k in range(FOLDS):
            learn, test = (fold != k) & used, fold == k
            fitted = head.fit(features[learn], labels[learn], n_classes)
            found[test] += fitted.scores(features[test]) / REPEATS
            progress((repeat * FOLDS + k + 1) / (FOLDS * REPEATS))
    return found


def judge(found: NDArray[np.float64], labels: Index) -> Judged:
    """Finds doubtful labels.

    Confident learning estimates well how many labels are wrong. Which ones, either score ranks
    better, and the mean of the two ranks best (docs/log.md).

    Args:
        found: [N, C] out-of-fold scores.
        labels: [N], each class at least once.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given = probabilities(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small classes and of numpy's types
        n = int(find_label_issues(labels, given, n_jobs=1).sum())
        confidence, margin = (
            get_label_quality_scores(labels, given, method=method)
            for method in ("self_confidence", "normalized_margin")
        )
    quality = np.asarray((confidence + margin) / 2)
    doubtful = np.zeros(len(labels), bool)
    doubtful[np.argsort(quality, kind="stable")[:n]] = True
    # A head that predicts the label does not doubt it.
    return Judged(given, doubtful & (given.argmax(axis=1) != labels), quality)


def probabilities(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """The softmax of a head's scores, [N, C], which are regressions on +1 and -1.

    It is flatter than a probability: with it confident learning flags fewer and ranks them better
    than with fitted temperatures (docs/log.md).
    """
    powers = np.exp(found - found.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Effect:
    """Cross-validated accuracy of a linear head with and without the doubtful images."""

    n: int
    n_without: int
    as_it_is: float
    """Accuracy on all labels."""
    learned_with: float
    """Accuracy on the labels that are not doubtful, trained on all."""
    learned_without: float
    """Accuracy on the same labels, trained on these alone."""


def effect(
    found: NDArray[np.float64], without: NDArray[np.float64], labels: Index, sure: NDArray[np.bool_]
) -> Effect:
    """The accuracies.

    Args:
        found: [N, C] scores of heads trained on all labels.
        without: [N, C] scores of heads trained on those that are not doubtful.
        labels: [N]
        sure: [N] images that are not doubtful.
    """
    right, again = (each.argmax(axis=1) == labels for each in (found, without))
    return Effect(
        n=len(labels),
        n_without=int(sure.sum()),
        as_it_is=float(right.mean()),
        learned_with=float(right[sure].mean()),
        learned_without=float(again[sure].mean()),
    )
