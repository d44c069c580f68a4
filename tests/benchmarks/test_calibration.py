from __future__ import annotations

import numpy as np
import pytest

from benchmarks import calibration


def test_ece_by_hand() -> None:
    """60 images at 0.9 of which 45 are right, 40 at 0.5 of which 20 are: 0.6 x 0.15."""
    confidence = np.array([0.9] * 60 + [0.5] * 40, np.float32)
    right = np.array([True] * 45 + [False] * 15 + [True] * 20 + [False] * 20)
    true = np.where(right, confidence, 1 - confidence).astype(np.float32)
    found = calibration.measure(confidence, right, true, np.zeros(100, np.float32))
    assert found.ece.value == pytest.approx(0.09, abs=1e-6)
    assert found.ece.low < 0.09 < found.ece.high
    assert [(part.n, round(part.accuracy, 3)) for part in found.bins] == [(40, 0.5), (60, 0.75)]
    assert found.nll.value == pytest.approx(float(-np.log(true).mean()), rel=1e-5)


def test_honest_probabilities_are_calibrated() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 20_000).astype(np.float32)
    right = random.random(20_000) < confidence
    found = calibration.measure(confidence, right, confidence, confidence)
    assert found.ece.value < 0.015
