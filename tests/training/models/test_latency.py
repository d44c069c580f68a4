from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from labelcurve.training.models import latency
from tests.models import graph


def test_the_median_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    two_classes = graph(np.zeros((64, 2), np.float32), np.zeros(2, np.float32))
    took = [1.0] * latency.WARM_UP + [0.002, 0.004, 0.003, 0.003, 9.0]
    monkeypatch.setattr("time.thread_time", clock(took).__next__)
    assert latency.p50_ms(two_classes, images, timed=5) == 3.0


def clock(took: list[float]) -> Iterator[float]:
    """The time before and after each of these seconds."""
    now = 0.0
    for seconds in took:
        yield now
        now += seconds
        yield now
