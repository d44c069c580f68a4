"""The linear classifier against a hand-computed case and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from labelcurve.training.forecast import head


def test_a_fit_of_two_images_is_the_one_computed_by_hand() -> None:
    # Centred features are -1 and 1, and so are the targets: the weight is 2 / (2 + penalty).
    fitted = head.fit(np.array([[0.0], [2.0]], np.float32), np.array([0, 1]), 2)
    weight = 2 / (2 + head.PENALTY)
    assert fitted.weights == pytest.approx(np.array([[-weight, weight]]), rel=1e-5)
    assert fitted.scores(np.array([[1.0]], np.float32)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("n", [40, 400])
def test_a_fit_is_ridge_regression_with_few_and_with_many_images(n: int) -> None:
    digits = load_digits()
    features = head.standardise(digits.data.astype(np.float32))
    labels = digits.target[:n]
    fitted = head.fit(features[:n], labels, 10)
    targets = 2.0 * np.eye(10)[labels] - 1
    theirs = Ridge(alpha=head.PENALTY).fit(features[:n].astype(np.float64), targets)
    assert fitted.scores(features[n:]) == pytest.approx(theirs.predict(features[n:]), abs=2e-3)


def test_constant_features_are_left_out_and_the_others_scaled() -> None:
    rows = np.array([[1, 7, 0], [3, 7, 10]], np.float32)
    expected = np.array([[-1, -1], [1, 1]]) / np.sqrt(2)
    assert head.standardise(rows) == pytest.approx(expected)
    other = head.standardise(np.array([[2, 0, 5]], np.float32), rows)
    assert other == pytest.approx(np.zeros((1, 2)))
