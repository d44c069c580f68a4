"""What accuracy hides."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import balance
from labelcurve.training.forecast.measurement import Measured

NAMES = ("glass", "paper", "rare")


def found(labels: Index, guess: int) -> balance.Balance:
    """A model that is right only with the most labels, and then only of one class."""
    wrong = np.ones((3, len(labels), 2), np.bool_)
    wrong[:, :, 1] = labels != guess
    measured = Measured(np.array([10, 20]), wrong, len(labels), subsets=30, penalty=1)
    return balance.balance(measured, labels, labels, NAMES)


def test_a_model_that_guesses_the_most_frequent_class_has_no_skill() -> None:
    labels = np.repeat([0, 1, 2], [90, 7, 3])
    imbalanced = found(labels, 0)
    assert imbalanced.share == pytest.approx(0.9)
    assert imbalanced.balanced == pytest.approx(1 / 3)
    assert balance.said(imbalanced) == (
        "What accuracy hides: always guessing 'glass' would give 90.0 % accuracy; 1 class with "
        "fewer than 5 labels: 'rare' (3); the mean over classes (balanced accuracy) is 33.3 %, and "
        "no image of 'paper', 'rare' was recognised."
    )


def test_classes_with_labels_enough_are_not_mentioned() -> None:
    assert balance.said(found(np.repeat([0, 1, 2], [10, 8, 5]), 0)) is None
    few = balance.said(found(np.repeat([0, 1, 2], [10, 8, 4]), 2))
    assert few is not None
    assert "always guessing" not in few
    assert "'rare' (4)" in few


def test_a_class_that_is_not_tested_has_no_recall() -> None:
    labels = np.repeat([0, 1], [10, 10])
    untested = found(labels, 1)
    assert untested.recalls == (0.0, 1.0, None)
    assert untested.balanced == 0.5
