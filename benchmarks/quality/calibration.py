"""Calibration: are predictions with probability 0.8 right in 8 of 10 cases?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.statistics import RESAMPLES, estimate
from labelcurve.benchmarks.record import Bin, Calibration

BINS = 15


def measure(
    confidence: NDArray[np.float32],
    right: NDArray[np.bool_],
    true_probability: NDArray[np.float32],
    brier: NDArray[np.float32],
) -> Calibration:
    """Compute reliability diagram, ECE, NLL and Brier score.

    Args:
        confidence: [N] probability of the predicted class.
        right: [N] whether it is correct.
        true_probability: [N] probability of the true class.
        brier: [N] squared distance of the probabilities from the truth.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gap = right.astype(np.float64) - confidence
    loss = -np.log(np.maximum(true_probability, 1e-12)).astype(np.float64)
    n = len(right)
    random = np.random.default_rng(0)
    eces, losses = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = random.integers(0, n, n)
        eces[index] = _ece(place[drawn], gap[drawn])
        losses[index] = loss[drawn].mean()
    full = [inside for number in range(BINS) if (inside := place == number).any()]
    bins = [
        Bin(n=int(b.sum()), confidence=float(confidence[b].mean()), accuracy=float(right[b].mean()))
        for b in full
    ]
    return Calibration(
        ece=estimate(_ece(place, gap), eces),
        nll=estimate(float(loss.mean()), losses),
        brier=float(brier.mean()),
        bins=tuple(bins),
    )


def _ece(place: NDArray[np.int64], gap: NDArray[np.float64]) -> float:
    """Mean of |accuracy - confidence| over bins, weighted by their size (Guo et al. 2017)."""
    sums = np.bincount(place, weights=gap, minlength=BINS)
    return float(np.abs(sums).sum() / len(place))
