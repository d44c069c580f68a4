from __future__ import annotations

import numpy as np

from labelcurve.benchmarks.harness.session import Session
from labelcurve.bundle.store import Bundle


def test_answers_a_constant_for_any_batch(nothing: Bundle, bundles: list[Bundle]) -> None:
    session = Session(nothing, 1)
    for n in (1, 2, 7):
        found = session.probabilities(np.zeros((n, 8, 8, 3), np.uint8))
        assert found.shape == (n, 10)
        assert np.allclose(found, 0.1)
    assert nothing.manifest.class_names == bundles[-1].manifest.class_names
