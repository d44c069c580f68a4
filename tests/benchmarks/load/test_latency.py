from __future__ import annotations

import re

from labelcurve.benchmarks.load import latency
from labelcurve.bundle.store import Bundle


def test_every_model_and_batch_is_timed_in_the_same_rounds(bundles: list[Bundle]) -> None:
    said: list[str] = []
    found = latency.measure(bundles, 0, batches=(1, 2, 16), threads=1, say=said.append)
    assert re.fullmatch(r"  about \d+ s, at least 3 rounds", said[0])
    assert list(found) == [bundle.name for bundle in bundles]
    for times in found.values():
        assert times.threads == 1
        assert times.rounds == latency.MIN_ROUNDS
        assert [row.batch for row in times.batches] == [1, 2, 16]
        assert [row.n for row in times.batches] == [48, 24, 6]
        for row in times.batches:
            assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
            assert row.p50_low_ms <= row.p50_high_ms
            assert row.images_per_s > 0


def test_percentiles_and_spread() -> None:
    rounds = [[float(value)] * 2 for value in range(1, 101)]
    found = latency._summary(4, rounds)
    assert found.n == 200
    assert found.p50_ms == 50.5
    assert found.p99_ms > 98
    assert (found.p50_low_ms, found.p50_high_ms) == (10.5, 90.5)
    assert found.images_per_s == 4 / 50.5 * 1e3
