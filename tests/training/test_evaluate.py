from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from training import evaluate


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
    found = evaluate.scores(logits_of([0, 0, 1, 1, 0, 2]), labels)
    assert found.n == 6
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.recall == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    assert found.precision == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    assert found.f1 == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    right, wrong = np.log(1 + 2 * np.exp(-4)), np.log(1 + 2 * np.exp(-4)) + 4
    assert found.loss == pytest.approx((4 * right + 2 * wrong) / 6)


def test_scores_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(500)
    found = evaluate.scores(logits, labels)
    predicted = logits.argmax(1)
    assert found.f1 == pytest.approx(f1_score(labels, predicted, average="weighted"))
    assert found.precision == pytest.approx(precision_score(labels, predicted, average="weighted"))
    assert found.recall == pytest.approx(recall_score(labels, predicted, average="weighted"))
    assert found.loss == pytest.approx(log_loss(labels, np.exp(log_softmax(logits, axis=1))))


def test_a_class_that_is_never_predicted_counts_as_zero_without_a_warning() -> None:
    found = evaluate.scores(logits_of([0, 0, 0, 0]), np.array([0, 0, 1, 2]))
    assert found.accuracy == 0.5
    assert found.precision == pytest.approx(0.25)


def test_log_probabilities_score_as_the_logits_do() -> None:
    logits, labels = drawn(200)
    shifted = evaluate.scores(log_softmax(logits, axis=1), labels)
    assert shifted.model_dump() == pytest.approx(evaluate.scores(logits, labels).model_dump())


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 3.0])
def test_a_known_temperature_is_recovered(true: float) -> None:
    logits, labels = drawn(20_000)
    assert evaluate.temperature(logits * true, labels) == pytest.approx(true, rel=0.05)


def test_the_temperature_lowers_the_loss_and_keeps_the_predictions() -> None:
    logits, labels = drawn(2000)
    t = evaluate.temperature(logits * 3, labels)
    before, after = evaluate.scores(logits * 3, labels), evaluate.scores(logits * 3 / t, labels)
    assert after.loss < before.loss - 0.1
    assert after.accuracy == before.accuracy


@pytest.mark.parametrize("confidence", [2.0, 5.0, 20.0])
def test_ten_rows_that_are_all_right_leave_the_temperature_near_1(confidence: float) -> None:
    labels = np.arange(10)
    assert 0.4 < evaluate.temperature(np.eye(10) * confidence, labels) < 1.1


def test_the_report_has_every_class_by_name_also_those_without_images() -> None:
    labels, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
    found = evaluate.report(predicted, labels, ("cat", "dog", "emu"))
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
    assert evaluate.confusion(predicted, labels, 4) == (
        (1, 2, 0, 0),
        (0, 0, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 0),
    )
