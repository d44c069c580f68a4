from __future__ import annotations

import pytest

from benchmarks import windows
from benchmarks.record import Step, Window
from benchmarks.windows import Request


def of(rate: float, p50: float | None = 10.0) -> Window:
    return Window(seconds=1, n=int(rate), requests_per_s=rate, p50_ms=p50)


def test_requests_belong_to_the_window_in_which_they_end() -> None:
    requests = [
        Request(0.0, 500.0, None, None),
        Request(0.9, 200.0, None, None),
        Request(1.5, 100.0, "status 503", None),
        Request(2.5, 500.0, None, None),
    ]
    found = windows.cut(requests, 0.0, 3.0)
    assert [window.n for window in found] == [1, 1, 1]
    assert [window.p50_ms for window in found] == [500.0, 200.0, 500.0]


def test_three_windows_within_ten_percent_are_stable() -> None:
    assert windows.stable([of(50), of(100), of(105), of(95)])
    assert not windows.stable([of(100), of(100), of(80)])
    assert not windows.stable([of(100, 10), of(100, 10), of(100, 15)])
    assert not windows.stable([of(100), of(100)])
    assert not windows.stable([of(100), of(100), of(100, None)])


def steps(*rates: float) -> list[Step]:
    found = []
    for index, rate in enumerate(rates):
        requests = [Request(i / max(rate, 1), 1.0, None, None) for i in range(int(rate))]
        found.append(windows.step(requests, 0.0, 1.01, users=2**index))
    return found


def test_the_knee_is_the_fewest_clients_near_the_best_rate() -> None:
    at = windows.knee(steps(100, 190, 300, 310, 305))
    assert at is not None
    assert at.users == 4
    assert windows.knee([]) is None
    assert windows.knee(steps(0, 0)) is None


def test_a_step_at_a_fixed_rate_keeps_what_was_answered_late() -> None:
    requests = [Request(0.5, 10.0, None, None), Request(0.9, 5000.0, None, None)]
    closed = windows.step(requests, 0.0, 1.0, users=1)
    fixed = windows.step(requests, 0.0, 1.0, rate=2.0)
    assert (closed.n, fixed.n) == (1, 2)
    assert fixed.p99_ms == pytest.approx(4950, abs=1)
