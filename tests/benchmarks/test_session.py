from __future__ import annotations

import numpy as np

from benchmarks.session import Session
from bundle.store import Bundle


def test_probabilities(bundles: list[Bundle]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    found = Session(bundles[0], threads=1).probabilities(images)
    assert found.shape == (3, 10)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
