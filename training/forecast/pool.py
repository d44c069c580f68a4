"""A head that learns from images without labels, too, in milliseconds a fit.

As `train` has it with few labels on photos (`training.models.propagation`), but with one pass in
place of three and in closed form: graph and regression are those of all images, and the same
whichever of them have a label. It gains somewhat less (docs/plan.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Head, Ridge, Rows
from labelcurve.training.models.propagation import Neighbours

SHARPNESS = 6.0
"""Factor of a head's scores, about -1 to 1, as logits (docs/log.md)."""


class Pool:
    """Images of which any may have a label.

    Args:
        features: [N, D], as `head.standardise` gives them.
    """

    def __init__(self, features: Rows) -> None:
        self._features = features
        self._graph = Neighbours(features)
        self._regression = Ridge(features)

    def fit(self, rows: NDArray[np.int64], labels: Index, n_classes: int) -> Head:
        """The head that has learned the answers to all images.

        Args:
            rows: those with a label, [M].
            labels: theirs, [M].
            n_classes: C, the classes that the labels are of.
        """
        own = head.fit(self._features[rows], labels, n_classes)
        guess = softmax(SHARPNESS * own.scores(self._features), axis=1)
        answers = self._graph.spread(guess, rows, labels)
        return self._regression.fit(2 * answers - 1)
