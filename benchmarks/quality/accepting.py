"""Accepted answers: how many the held-out images predict, and how accurate they are on test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.record import Accepted, Accepting, Point
from labelcurve.bundle import acceptance
from labelcurve.bundle.manifest import HeldOut

WISHED = (0.9, 0.95, 0.98, 0.99, 0.995)
POINTS = 60
"""Number of points of the curve."""


def measure(
    held: HeldOut | None, confidence: NDArray[np.float32], right: NDArray[np.bool_]
) -> Accepting:
    """Accuracy over coverage on the test images, and what the thresholds accept of them.

    Args:
        held: of the manifest; the thresholds are based on it alone.
        confidence: [N] probability of the predicted class of the test images.
        right: [N] whether it is correct.
    """
    n = len(right)
    accuracy = np.cumsum(right[(-confidence).argsort(kind="stable")]) / np.arange(1, n + 1)
    points = min(n, POINTS)
    at = (np.arange(1, points + 1) * n / points).round().astype(int)
    levels = []
    for wished in WISHED:
        try:
            found = acceptance.threshold(held, wished)
        except acceptance.NotEnough as error:
            levels.append(Accepted(wished=wished, why_none=str(error)))
            continue
        accepted = confidence >= np.float32(found.confidence)
        levels.append(
            Accepted(
                wished=wished,
                forecast=found.coverage,
                coverage=float(accepted.mean()),
                accuracy=float(right[accepted].mean()) if accepted.any() else None,
            )
        )
    return Accepting(
        levels=tuple(levels),
        curve=tuple(Point(coverage=float(k / n), accuracy=float(accuracy[k - 1])) for k in at),
    )
