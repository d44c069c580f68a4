from __future__ import annotations

import numpy as np
import pytest

from labelcurve.benchmarks.quality import calibration


def test_ece_by_hand() -> None:
    """60 images at 0.9 of which 45 are right, 40 at 0.5 of which 20 are: 0.6 x 0.15."""
    confidence = np.array([0.9] * 60 + [0.5] * 40, np.float32)
    right = np.array([True] * 45 + [False] * 15 + [True] * 20 + [False] * 20)
    true = np.where(right, confidence, 1 - confidence).astype(np.float32)
    brier = np.linspace(0, 2, 100, dtype=np.float32)
    found = calibration.measure(confidence, right, true, brier)
    assert found.brier == pytest.approx(1.0)
    assert found.ece.value == pytest.approx(0.09, abs=1e-6)
    # Each image adds 0.1 or -0.9 (of 60) or 0.5 or -0.5 (of 40); resampled ECEs are about folded
    # normal around 0.09 and below.
    assert found.ece.low == pytest.approx(0.03, abs=0.02)
    assert found.ece.high == pytest.approx(0.19, abs=0.02)
    assert [(part.n, part.accuracy) for part in found.bins] == [(40, 0.5), (60, 0.75)]
    assert [part.confidence for part in found.bins] == pytest.approx([0.5, 0.9])
    losses = -np.log(true.astype(np.float64))
    assert found.nll.value == pytest.approx(losses.mean())
    half = 1.96 * losses.std() / 10
    assert found.nll.low == pytest.approx(losses.mean() - half, abs=0.02)
    assert found.nll.high == pytest.approx(losses.mean() + half, abs=0.02)


def test_honest_probabilities_are_calibrated() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 20_000).astype(np.float32)
    right = random.random(20_000) < confidence
    found = calibration.measure(confidence, right, confidence, confidence)
    assert found.ece.value < 0.015
    overconfident = np.minimum(confidence + 0.1, 1).astype(np.float32)
    found = calibration.measure(overconfident, right, confidence, confidence)
    gap = float((overconfident - confidence).mean())
    assert found.ece.value == pytest.approx(gap, abs=0.01)


def test_a_true_class_of_probability_0_has_a_finite_loss() -> None:
    none, all_ = np.zeros(2, np.float32), np.ones(2, np.float32)
    found = calibration.measure(all_, np.zeros(2, np.bool_), none, all_)
    assert found.nll.value == pytest.approx(-np.log(1e-12))
    assert found.ece.value == 1.0


def test_a_probability_belongs_to_the_bin_that_it_closes() -> None:
    edges = np.array([0.2, 0.2 + 1e-6, 1.0], np.float32)
    right = np.ones(3, np.bool_)
    found = calibration.measure(edges, right, edges, edges)
    assert [part.n for part in found.bins] == [1, 1, 1]
