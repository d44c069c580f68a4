"""Which held-out images a classifier on frozen features gets right: the truth of a forecast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data import fractions
from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Rows
from labelcurve.training.models import propagation
from labelcurve.training.models.linear_head import fit_linear
from labelcurve.training.recipes import MOST_UNLABELLED, TUNED_FROM

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def of_ridge(features: Rows, labels: Index, train: Numbers, test: Numbers, penalty: float) -> Flags:
    """[T] flags of the classifier that `plan` measures with.

    Args:
        features: [N, D]
        labels: [N]
        train: rows to learn from.
        test: rows to evaluate on.
        penalty: that of `plan`.
    """
    scaled = head.standardise(features, features[train])
    fitted = head.fit(scaled[train], labels[train], int(labels.max()) + 1, penalty)
    right: Flags = fitted.scores(scaled[test]).argmax(axis=1) == labels[test]
    return right


def of_train(
    features: Rows, labels: Index, train: Numbers, others: Numbers, test: Numbers, seed: int
) -> Flags:
    """[T] flags of the linear head that `train` fits to photos; arguments as for `of_ridge`.

    Args:
        others: rows without labels, from which it learns where labels are few.
        seed: of its cross-validation.
    """
    fitted = fit_linear(features[train], labels[train], int(labels.max()) + 1, seed=seed)
    if len(train) < TUNED_FROM and len(others):
        used = np.concatenate([train, fractions.spread(others, MOST_UNLABELLED)])
        pool = propagation.Pool(features[used], labels[train])
        trial = pool.tried(fitted, seed)
        if trial is None or not trial.worse:
            fitted = pool.learned(fitted)
    right: Flags = fitted.logits(features[test]).argmax(axis=1) == labels[test]
    return right
