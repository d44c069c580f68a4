"""A linear classifier on frozen features, its L2 penalty chosen by cross-validation.

Fitted in seconds, and hard to beat with few labels on a pretrained backbone (Kornblith et al., Do
Better ImageNet Models Transfer Better?, 2019).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data.source import Index
from labelcurve.training.learning.metrics import scores

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""L2 penalties to choose from: factors of |W|^2 / 2, on standardised features, added to the
mean loss."""
UNCHOSEN = 0.1
"""The penalty where a class has a single label, so that nothing can be held out."""
FOLDS = 5
CHOSEN_ON = 5_000
"""Labels that cross-validation looks at, at most."""


@dataclass(frozen=True)
class LinearHead:
    """Weights of a linear classifier and how they were chosen."""

    weight: NDArray[np.float32]
    """[K, D], of the features as they are: the standardisation is folded in."""
    bias: NDArray[np.float32]
    """[K]"""
    penalty: float
    balanced: bool
    """Classes had equal weight in the loss, whatever their number of labels."""
    accuracy: float | None
    """Cross-validated, of the chosen penalty; None where nothing could be held out."""
    balanced_accuracy: float | None
    n_unlabelled: int = 0
    """Images without labels that it was also trained on, with their propagated labels
    (`training.models.propagation`)."""

    def choices(self) -> dict[str, object]:
        """Returns the choices and the figures they are based on, for a manifest."""
        return {
            "linear_head": {
                "penalty": self.penalty,
                "balanced": self.balanced,
                "accuracy": self.accuracy,
                "balanced_accuracy": self.balanced_accuracy,
                "n_unlabelled": self.n_unlabelled,
            }
        }

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [N, D] to float32 [N, K]."""
        found: NDArray[np.float32] = features @ self.weight.T + self.bias
        return found


def fit_linear(
    features: NDArray[np.float32],
    labels: Index,
    n_classes: int,
    *,
    penalty: float | None = None,
    balanced: bool | None = None,
    seed: int = 0,
) -> LinearHead:
    """Multinomial logistic regression on standardised features.

    Args:
        features: float32 [N, D].
        labels: [N], from 0 to `n_classes` - 1; each class occurs.
        penalty: None chooses among `PENALTIES` by the cross-validated loss.
        balanced: None weights the classes equally where that raises the cross-validated balanced
            accuracy by more than it costs in accuracy.
        seed: of the folds.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if counts.min() < 1:
        raise ValueError(f"class {int(counts.argmin())} has no label")
    accuracy = balanced_accuracy = None
    if counts.min() < 2:
        penalty, balanced = UNCHOSEN if penalty is None else penalty, bool(balanced)
    elif penalty is None or balanced is None:
        penalties = PENALTIES if penalty is None else (penalty,)
        best = _best(features, labels, n_classes, penalties, bool(balanced), seed)
        if balanced is None and counts.max() > counts.min():
            # At the same penalty: to choose both together takes twice the time.
            other = _best(features, labels, n_classes, (best.penalty,), True, seed)
            if other.balanced_accuracy - best.balanced_accuracy > best.accuracy - other.accuracy:
                best = other
        penalty, balanced = best.penalty, best.balanced
        accuracy, balanced_accuracy = best.accuracy, best.balanced_accuracy
    mean, scale = moments(features)
    ((weight, bias),) = _path((features - mean) / scale, labels, n_classes, (penalty,), balanced)
    weight = weight / scale
    return LinearHead(
        weight=weight.astype(np.float32),
        bias=(bias - weight @ mean).astype(np.float32),
        penalty=penalty,
        balanced=balanced,
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy,
    )


@dataclass(frozen=True)
class _Choice:
    penalty: float
    balanced: bool
    accuracy: float
    balanced_accuracy: float


def _best(
    features: NDArray[np.float32],
    labels: Index,
    n_classes: int,
    penalties: tuple[float, ...],
    balanced: bool,
    seed: int,
) -> _Choice:
    """The penalty with the smallest cross-validated loss."""
    from sklearn.model_selection import StratifiedKFold

    rows = np.random.default_rng(seed).permutation(len(labels))[:CHOSEN_ON]
    if np.bincount(labels[rows], minlength=n_classes).min() < 2:
        rows = np.arange(len(labels))  # a rare class would be lost
    features, labels = features[rows], labels[rows]
    folds = min(FOLDS, int(np.bincount(labels).min()))
    logits = np.empty((len(penalties), len(labels), n_classes), np.float64)
    for learn, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels):
        mean, scale = moments(features[learn])
        here, there = ((features[part] - mean) / scale for part in (learn, held))
        here, there = _rotated(here, there)
        for i, (weight, bias) in enumerate(
            _path(here, labels[learn], n_classes, penalties, balanced)
        ):
            logits[i, held] = there @ weight.T + bias
    figures = [scores(found, labels) for found in logits]
    at = int(np.argmin([each.loss for each in figures]))
    there_balanced = figures[at].balanced_accuracy
    assert there_balanced is not None
    return _Choice(penalties[at], balanced, figures[at].accuracy, there_balanced)


def moments(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each feature, float32 [D]; one that never varies has 1."""
    scale = features.std(0)
    return features.mean(0), np.where(scale > 1e-6, scale, 1).astype(np.float32)


def _rotated(
    here: NDArray[np.float32], there: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both in the space that the rows of `here` span: the same optimum in fewer dimensions."""
    if here.shape[0] >= here.shape[1]:
        return here, there
    _, _, directions = np.linalg.svd(here, full_matrices=False)
    return here @ directions.T, there @ directions.T


def _path(
    standardised: NDArray[np.float32],
    labels: Index,
    n_classes: int,
    penalties: tuple[float, ...],
    balanced: bool,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights [K, D] and biases [K] for each penalty, each fitted from those before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        class_weight="balanced" if balanced else None, max_iter=300, tol=1e-4, warm_start=True
    )
    for penalty in penalties:
        model.C = 1 / (penalty * len(labels))
        with warnings.catch_warnings():
            # Weak penalties converge slowly, and cross-validation judges what came out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(standardised, labels)
        weight, bias = model.coef_, model.intercept_
        if n_classes == 2:  # scikit-learn keeps the second class alone
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        yield weight.astype(np.float64), bias.astype(np.float64)
