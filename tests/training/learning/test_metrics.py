from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from labelcurve.training.learning import metrics


def logits_of(predicted: list[int], n_classes: int = 3) -> NDArray[np.float64]:
    return np.eye(n_classes)[predicted] * 4.0


def drawn(n: int, n_classes: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels that are drawn from just their probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, n_classes))
    cumulated = np.exp(log_softmax(logits, axis=1)).cumsum(1)
    labels = (rng.random((n, 1)) > cumulated).sum(1)
    return logits, labels.clip(0, n_classes - 1)


def test_scores_are_those_of_a_computation_by_hand() -> None:
    # class 0: 2 of 3 found, 1 wrongly; class 1: 1 of 2 found, 1 wrongly; class 2: 1 of 1
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = metrics.scores(logits_of([0, 0, 1, 1, 0, 2]), labels)
    assert found.n == 6
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.recall == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    assert found.precision == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    assert found.f1 == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    right, wrong = np.log(1 + 2 * np.exp(-4)), np.log(1 + 2 * np.exp(-4)) + 4
    assert found.loss == pytest.approx((4 * right + 2 * wrong) / 6)


def test_the_distribution_counts_classes_and_confidence() -> None:
    top = (0.5, 0.50001, 0.9999, 0.34)  # a bound belongs to the bin below it
    rows = np.array([[p, (1 - p) * 0.6, (1 - p) * 0.4] for p in top])
    rows[3] = rows[3][[2, 0, 1]]
    found = metrics.distribution(rows, "validation")
    assert (found.split, found.n, found.classes) == ("validation", 4, (3, 0, 1))
    assert len(found.confidence) == len(found.bounds) + 1
    by_bound = dict(zip((*found.bounds, "above"), found.confidence, strict=True))
    expected = {0.4: 1, 0.5: 1, 0.6: 1, "above": 1}
    assert {bound: n for bound, n in by_bound.items() if n} == expected


def test_scores_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(500)
    found = metrics.scores(logits, labels)
    predicted = logits.argmax(1)
    assert found.f1 == pytest.approx(f1_score(labels, predicted, average="weighted"))
    assert found.precision == pytest.approx(precision_score(labels, predicted, average="weighted"))
    assert found.recall == pytest.approx(recall_score(labels, predicted, average="weighted"))
    assert found.loss == pytest.approx(log_loss(labels, np.exp(log_softmax(logits, axis=1))))


def test_a_class_that_is_never_predicted_counts_as_zero_without_a_warning() -> None:
    found = metrics.scores(logits_of([0, 0, 0, 0]), np.array([0, 0, 1, 2]))
    assert found.accuracy == 0.5
    assert found.precision == pytest.approx(0.25)


def test_log_probabilities_score_as_the_logits_do() -> None:
    logits, labels = drawn(200)
    shifted = metrics.scores(log_softmax(logits, axis=1), labels)
    assert shifted.model_dump() == pytest.approx(metrics.scores(logits, labels).model_dump())


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 3.0])
def test_a_known_temperature_is_recovered(true: float) -> None:
    logits, labels = drawn(20_000)
    assert metrics.temperature(logits * true, labels) == pytest.approx(true, rel=0.05)


def test_the_temperature_lowers_the_loss_and_keeps_the_predictions() -> None:
    logits, labels = drawn(2000)
    t = metrics.temperature(logits * 3, labels)
    before, after = metrics.scores(logits * 3, labels), metrics.scores(logits * 3 / t, labels)
    assert after.loss < before.loss - 0.1
    assert after.accuracy == before.accuracy


@pytest.mark.parametrize("confidence", [2.0, 5.0, 20.0])
def test_ten_rows_that_are_all_right_leave_the_temperature_near_1(confidence: float) -> None:
    labels = np.arange(10)
    assert 0.4 < metrics.temperature(np.eye(10) * confidence, labels) < 1.1


@pytest.mark.parametrize("confidence", [2.0, 5.0, 20.0])
def test_the_temperature_is_the_best_under_a_normal_prior_of_half_a_unit_on_its_logarithm(
    confidence: float,
) -> None:
    log_t = np.linspace(np.log(0.1), np.log(10), 100_001)
    # Ten rows, all of them right: minus their log-likelihood, and minus that of the prior.
    surprise = np.log1p(9 * np.exp(-confidence / np.exp(log_t)))
    best = np.exp(log_t[np.argmin(10 * surprise + 2 * log_t**2)])
    found = metrics.temperature(np.eye(10) * confidence, np.arange(10))
    assert found == pytest.approx(best, rel=1e-3)


def test_the_report_has_every_class_by_name_also_those_without_images() -> None:
    labels, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
    found = metrics.report(predicted, labels, ("cat", "dog", "emu"))
    assert found["cat"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1-score": pytest.approx(2 / 3),
        "support": 2.0,
    }
    assert found["dog"]["support"] == 0.0
    assert {"cat", "dog", "emu", "weighted avg", "macro avg"} <= set(found)


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    labels, predicted = np.array([0, 0, 0, 2]), np.array([0, 1, 1, 2])
    assert metrics.confusion(predicted, labels, 4) == (
        (1, 2, 0, 0),
        (0, 0, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 0),
    )
