"""The head that learns from images without labels, on digits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits

from labelcurve.training.forecast import head, measurement
from labelcurve.training.forecast.pool import Pool
from labelcurve.training.models.propagation import Neighbours


def test_what_all_images_are_answered_is_what_the_regression_learns() -> None:
    found = load_digits()
    features = head.standardise(found.data[:400].astype(np.float32))
    rows = np.arange(50, 100)
    fitted = Pool(features).fit(rows, found.target[rows], 10)
    expected = head.fit(features[rows], found.target[rows], 10)
    near, answers = Neighbours(features), None
    for _ in range(3):
        guess = softmax(6 * expected.scores(features), axis=1)
        graph = near.graph() if answers is None else near.graph(guess)
        answers = graph.spread(guess if answers is None else answers, rows, found.target[rows])
        expected = head.Ridge(features).fit(2 * answers - 1)
    assert fitted.weights == pytest.approx(expected.weights, abs=1e-4)
    assert fitted.bias == pytest.approx(expected.bias, abs=1e-4)


def test_images_without_labels_raise_the_curve() -> None:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    features = head.standardise(found.data[order].astype(np.float32))
    labels = found.target[order]
    alone = measurement.cross_validate(features[:100], labels[:100], 10)
    taught = measurement.cross_validate(features[:100], labels[:100], 10, others=features[100:])
    assert (alone.sizes == taught.sizes).all()
    assert (alone.errors - taught.errors).mean() > 0.02
    assert (taught.errors <= alone.errors).all()


def test_on_a_test_split_they_teach_as_well() -> None:
    found = load_digits()
    features = head.standardise(found.data.astype(np.float32))
    labels = found.target
    test = (features[1000:], labels[1000:])
    taught = measurement.hold_out(features[:100], labels[:100], 10, test, others=features[100:1000])
    alone = measurement.hold_out(features[:100], labels[:100], 10, test)
    assert taught.wrong.shape == alone.wrong.shape
    assert (alone.errors - taught.errors).mean() > 0.005
    fitted = Pool(features[:1000]).fit(np.arange(100), labels[:100], 10)
    error = (fitted.scores(test[0]).argmax(axis=1) != test[1]).mean()
    assert taught.errors[-1] == pytest.approx(error, abs=0.005)
