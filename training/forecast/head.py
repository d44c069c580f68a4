"""A linear classifier on a frozen embedding, in closed form: ridge regression on +1 and -1.

One fit takes milliseconds, so the hundreds of fits behind a curve with an interval take seconds.
With standardised features one penalty is within half a point of the best at every number of labels
(docs/log.md), so the recipe is the same at each; with wrong labels it is a higher one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from labelcurve.training.data.source import Index

Rows = NDArray[np.float32]

PENALTY = 0.3
"""L2 penalty for features that are standardised and divided by the root of their number."""
PENALTIES = (PENALTY, 1.0, 3.0)
"""Those to choose from; wrong labels take a higher one."""


def standardise(features: Rows, like: Rows | None = None) -> Rows:
    """Features of mean 0 and variance 1 / D; those that are constant are left out.

    Args:
        features: [N, D]
        like: [M, D] rows that mean and variance come from; None takes `features`.
    """
    like = features if like is None else like
    spread = like.std(axis=0)
    live = spread > 1e-6 * max(float(spread.max()), 1e-9)
    scaled: Rows = (features[:, live] - like[:, live].mean(axis=0)) / spread[live]
    return scaled / np.float32(np.sqrt(live.sum()))


@dataclass(frozen=True)
class Head:
    """A fitted classifier."""

    weights: Rows
    """[D, C]"""
    bias: Rows
    """[C]"""

    def scores(self, features: Rows) -> Rows:
        """[N, C] of [N, D]; the largest is the class."""
        found: Rows = features @ self.weights + self.bias
        return found


def fit(features: Rows, labels: Index, n_classes: int, penalty: float = PENALTY) -> Head:
    """Fits a head, over features or over images, whichever are fewer.

    Args:
        features: [M, D], as `standardise` gives them.
        labels: [M]
        n_classes: C, the classes that the labels are of.
        penalty: factor of the squared weights.
    """
    targets = np.full((len(labels), n_classes), -1, np.float32)
    targets[np.arange(len(labels)), labels] = 1
    mean, bias = features.mean(axis=0), targets.mean(axis=0)
    x, y = features - mean, targets - bias
    few = len(x) <= x.shape[1]
    squares = x @ x.T if few else x.T @ x
    squares[np.diag_indices_from(squares)] += penalty
    factor = cho_factor(squares, overwrite_a=True, check_finite=False)
    if few:
        weights = x.T @ cho_solve(factor, y, check_finite=False)
    else:
        weights = cho_solve(factor, x.T @ y, check_finite=False)
    return Head(weights, bias - mean @ weights)
