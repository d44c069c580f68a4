from __future__ import annotations

import numpy as np
import pytest

from labelcurve.benchmarks.harness.session import Session
from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError
from labelcurve.bundle.store import Bundle


def test_probabilities(bundles: list[Bundle]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    found = Session(bundles[0], threads=1).probabilities(images)
    assert found.shape == (3, 10)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_a_gpu_that_is_not_there_is_not_measured(bundles: list[Bundle]) -> None:
    if cuda.visible_gpus():
        Session(bundles[0], threads=1, device="cuda")
        return
    with pytest.raises(DeviceError, match=r"the session of .* is on CPUExecutionProvider"):
        Session(bundles[0], threads=1, device="cuda")
