from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from labelcurve.training.data.source import Index
from labelcurve.training.models.linear_head import PENALTIES, UNCHOSEN, fit_linear


def clusters(
    counts: tuple[int, ...], dim: int = 40, spread: float = 3.0, seed: int = 0
) -> tuple[NDArray[np.float32], Index]:
    """Overlapping Gaussian clusters, features of very different scales."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(len(counts), dim))
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    rows = centres[labels] + spread * random.normal(size=(len(labels), dim))
    return (rows * 10.0 ** np.linspace(-1, 2, dim) + 1).astype(np.float32), labels


def test_it_is_the_optimum_that_scikit_learn_finds_on_standardised_features() -> None:
    features, labels = clusters((60, 60, 60))
    found = fit_linear(features, labels, 3, penalty=0.1, balanced=False)
    standard = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-6, max_iter=2000)
    expected = model.fit(standard.astype(np.float64), labels).predict_proba(standard)
    assert np.abs(softmax(found.logits(features), 1) - expected).max() < 2e-3


def test_two_classes_have_two_rows_of_weights_and_the_same_probabilities() -> None:
    features, labels = clusters((50, 50))
    found = fit_linear(features, labels, 2, penalty=0.1, balanced=False)
    standard = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-6, max_iter=2000)
    expected = model.fit(standard.astype(np.float64), labels).predict_proba(standard)
    assert found.weight.shape == (2, 40)
    assert np.abs(softmax(found.logits(features), 1) - expected).max() < 2e-3


def test_the_penalty_is_strong_where_features_tell_nothing_and_weak_where_they_tell_all() -> None:
    _, labels = clusters((60, 60, 60))
    noise = np.random.default_rng(1).normal(size=(180, 40)).astype(np.float32)
    assert fit_linear(noise, labels, 3).penalty == max(PENALTIES)
    plain, labels = clusters((60, 60, 60), spread=0.3)
    found = fit_linear(plain, labels, 3)
    assert found.penalty <= 0.01
    assert found.accuracy == 1.0


def test_the_cross_validated_accuracy_is_that_of_unseen_images() -> None:
    features, labels = clusters((60, 60, 60))
    found = fit_linear(features, labels, 3)
    unseen, truth = clusters((1000, 1000, 1000), seed=1)
    accuracy = (found.logits(unseen).argmax(1) == truth).mean()
    assert found.accuracy == pytest.approx(accuracy, abs=0.08)
    learned = (found.logits(features).argmax(1) == labels).mean()
    assert found.accuracy is not None
    assert learned > found.accuracy + 0.05


def test_rare_classes_get_weight_where_that_helps_them_more_than_it_costs_the_others() -> None:
    features, labels = clusters((400, 20, 20), spread=4.0)
    chosen = fit_linear(features, labels, 3)
    plain = fit_linear(features, labels, 3, balanced=False)
    assert chosen.balanced
    assert chosen.balanced_accuracy is not None
    assert plain.balanced_accuracy is not None
    assert chosen.balanced_accuracy > plain.balanced_accuracy + 0.05
    assert not fit_linear(*clusters((60, 60, 60)), 3).balanced


def test_one_label_a_class_leaves_nothing_to_choose_by() -> None:
    features, labels = clusters((1, 5))
    found = fit_linear(features, labels, 2)
    assert (found.penalty, found.accuracy) == (UNCHOSEN, None)
    with pytest.raises(ValueError, match="class 1 has no label"):
        fit_linear(features[:1], labels[:1], 2)


def test_the_same_labels_give_the_same_weights() -> None:
    features, labels = clusters((30, 40, 50))
    one, two = (fit_linear(features, labels, 3) for _ in range(2))
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)
