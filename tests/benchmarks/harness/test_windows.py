from __future__ import annotations

import pytest

from labelcurve.benchmarks.harness import windows
from labelcurve.benchmarks.harness.windows import Request
from labelcurve.benchmarks.record import Step, Window


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
    assert [window.n for window in found] == [1, 1, 1]  # no window has the failed one
    assert [window.p50_ms for window in found] == [500.0, 200.0, 500.0]
    assert [window.requests_per_s for window in found] == [1.0, 1.0, 1.0]
    assert [window.seconds for window in windows.cut(requests, 0.0, 3.0, 2)] == [1.5, 1.5]


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
    falling = windows.knee(steps(100, 190, 300, 310, 305)[::-1])
    assert falling is not None
    assert falling.users == 4
    assert windows.knee([]) is None
    assert windows.knee(steps(0, 0)) is None


def test_a_step_at_a_fixed_rate_keeps_what_was_answered_late() -> None:
    requests = [Request(0.5, 10.0, None, None), Request(0.9, 5000.0, None, None)]
    closed = windows.step(requests, 0.0, 1.0, users=1)
    fixed = windows.step(requests, 0.0, 1.0, rate=2.0)
    assert (closed.n, fixed.n) == (1, 2)
    assert fixed.p99_ms == pytest.approx(4950, abs=1)


def test_failed_requests_are_counted_and_no_throughput() -> None:
    requests = [Request(0.1 * i, 10.0 * (i + 1), None, None) for i in range(10)]
    requests += [Request(0.5, 1.0, "status 503", None)] * 5
    found = windows.step(requests, 0.0, 2.0, users=3, client_cpu=0.25, server_cpu=1.5, batch=2.5)
    assert (found.n, found.errors, found.requests_per_s) == (15, 5, 5.0)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((55.0, 95.5, 99.1))
    assert (found.seconds, found.users, found.rate) == (2.0, 3, None)
    assert (found.client_cpu, found.server_cpu, found.batch) == (0.25, 1.5, 2.5)


@pytest.mark.parametrize(("least", "stable"), [(90.0, True), (85.0, False)])
def test_ten_percent_are_of_the_mean(least: float, stable: bool) -> None:
    """Of 90, 100, 110 the ends are 10 % from the mean; of 85, 100, 110 the first is 13.6 %."""
    assert windows.alike([least, 100.0, 110.0]) is stable
