"""A head that learns from images without labels, too, in milliseconds a fit.

As `train` has it with few labels on photos (`training.models.propagation`), but in closed form: the
regression is on all images, so that one factorisation serves whichever of them have a label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Head, Ridge, Rows
from labelcurve.training.models.propagation import PASSES, Answers, Neighbours

SHARPNESS = 6.0
"""Factor of a head's scores, about -1 to 1, as logits (docs/log.md)."""


class Pool:
    """Images of which any may have a label.

    Args:
        features: [N, D], as `head.standardise` gives them.
    """

    def __init__(self, features: Rows) -> None:
        self._features = features
        self._near = Neighbours(features)
        self._regression = Ridge(features)

    def fit(self, rows: NDArray[np.int64], labels: Index, n_classes: int) -> Head:
        """The head that has learned the answers to all images.

        Args:
            rows: those with a label, [M].
            labels: theirs, [M].
            n_classes: C, the classes that the labels are of.
        """
        found = head.fit(self._features[rows], labels, n_classes)
        graph, answers = self._near.graph(), self._answers(found)
        for number in range(PASSES):
            if number:
                graph = self._near.graph(self._answers(found))
            answers = graph.spread(answers, rows, labels)
            found = self._regression.fit(2 * answers - 1)
        return found

    def _answers(self, found: Head) -> Answers:
        """Probabilities of all images, float32 [N, C]."""
        answers: Answers = softmax(SHARPNESS * found.scores(self._features), axis=1)
        return answers
