"""Metrics, per-class report, confusion matrix and temperature.

scikit-learn and scipy's optimisers are imported where they are used: that takes a second, which a
command that ends with an error or a dry run need not wait for.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from labelcurve.bundle.manifest import CONFIDENCE_BOUNDS, Metrics, Predicted
from labelcurve.training.data.source import Index

PRIOR_STD = 0.5
"""Standard deviation of the prior on log temperature, for validation sets of a few labels."""


def scores(logits: NDArray[np.float64], labels: Index) -> Metrics:
    """Metrics of logits (or log-probabilities), float [N, K]; F1, precision, recall weighted."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predicted = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, average="weighted", zero_division=0.0
    )
    log_probabilities = log_softmax(logits, axis=1)
    return Metrics(
        n=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        balanced_accuracy=_balanced(predicted, labels),
        f1=float(f1),
        precision=float(precision),
        recall=float(recall),
        loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
    )


def paired_error(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    """Standard error of the difference of two accuracies on the same images, [N] right or not."""
    return float((one.astype(float) - two).std() / np.sqrt(len(one)))


def distribution(
    probabilities: NDArray[np.floating[Any]], split: Literal["test", "validation"]
) -> Predicted:
    """Counts of the predicted classes and of their probabilities, of float [N, K]."""
    n, n_classes = probabilities.shape
    bins = np.searchsorted(CONFIDENCE_BOUNDS, probabilities.max(1), side="left")
    return Predicted(
        split=split,
        n=n,
        classes=tuple(np.bincount(probabilities.argmax(1), minlength=n_classes).tolist()),
        confidence=tuple(np.bincount(bins, minlength=len(CONFIDENCE_BOUNDS) + 1).tolist()),
    )


def _balanced(predicted: NDArray[np.int64], labels: Index) -> float:
    """Mean of the recalls of the classes that occur."""
    there = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(there))
    return float((right[there > 0] / there[there > 0]).mean())


def temperature(logits: NDArray[np.float64], labels: Index) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., 2017).

    A normal prior on its logarithm, of mean 0 and standard deviation `PRIOR_STD`, makes it the
    maximum a posteriori: with few validation labels it stays near 1.

    Args:
        logits: float [N, K], of validation rows.
        labels: int64 [N].
    """

    from scipy.optimize import minimize_scalar

    def objective(log_t: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_t), axis=1)
        likelihood = log_probabilities[np.arange(len(labels)), labels].sum()
        return float(-likelihood + 0.5 * (log_t / PRIOR_STD) ** 2)

    found = minimize_scalar(objective, bounds=(np.log(0.1), np.log(10)), method="bounded")
    return float(np.exp(found.x))


def report(
    predicted: NDArray[np.int64], labels: Index, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Per-class precision, recall, F1 and support, with scikit-learn's averages."""
    from sklearn.metrics import classification_report

    out: dict[str, Any] = classification_report(
        labels,
        predicted,
        labels=np.arange(len(class_names)),
        target_names=class_names,
        output_dict=True,
        zero_division=0.0,
    )
    return out


def confusion(
    predicted: NDArray[np.int64], labels: Index, n_classes: int
) -> tuple[tuple[int, ...], ...]:
    """Counts; rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predicted, labels=np.arange(n_classes))
    return tuple(tuple(int(count) for count in row) for row in matrix)
