from __future__ import annotations

import numpy as np

from labelcurve.benchmarks.labelling import accepting

RIGHT = np.arange(1000) % 20 > 0
"""19 of 20 answers, whatever their confidence."""
PROBABILITIES = np.tile([[0.8, 0.2]], (1000, 1)).astype(np.float32)
LABELS = np.where(RIGHT, 0, 1)


def found(draws: int, wished: float) -> dict[str, float | None]:
    drawn = accepting.resamples(PROBABILITIES, LABELS, range(draws), 400, 0)
    return accepting.accepting(PROBABILITIES, LABELS, drawn, wished)


def test_a_single_draw_has_no_spread() -> None:
    assert found(1, 0.9)["coverage"] == 1
    assert found(1, 0.9)["coverage_std"] is None
    assert found(5, 0.9)["coverage_std"] == found(5, 0.9)["accuracy_accepted_std"] == 0


def test_draws_without_a_threshold_are_counted_and_give_no_figure() -> None:
    refused = found(5, 0.99)
    assert (refused["refused"], refused["missed"]) == (5, 0)
    assert refused["coverage"] is refused["accuracy_accepted_std"] is None
    assert refused["best_coverage"] == 0.0
