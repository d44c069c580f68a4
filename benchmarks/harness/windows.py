"""Windows of a load test: rates, percentiles, stability, and the knee of saturation.

The locustfile imports this, so it must not import anything slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.record import Step, Window

TOLERANCE = 0.1
"""perf_analyzer's rule of stability: the last three windows lie within this of their mean."""
N_WINDOWS = 3
KNEE = 0.95
"""Share of the best rate at which saturation is reached."""
BUSY = 0.9
"""CPU cores above which a process of the load generator is the bottleneck."""


class Request(NamedTuple):
    """A request as recorded by the locustfile."""

    start: float
    """Seconds since the epoch; at a fixed rate when it was due."""
    latency_ms: float
    error: str | None
    timing: str | None
    """The answer's `Server-Timing`."""

    @property
    def end(self) -> float:
        """Seconds since the epoch."""
        return self.start + self.latency_ms / 1e3


def cut(
    requests: Sequence[Request], begin: float, end: float, n: int = N_WINDOWS
) -> tuple[Window, ...]:
    """Cut a stretch of time into equal windows; a request belongs to the one in which it ended.

    All requests ended between `begin` and `end`, in seconds since the epoch; some may have failed.
    """
    seconds = (end - begin) / n
    found = []
    for index in range(n):
        low, high = begin + index * seconds, begin + (index + 1) * seconds
        # The last window has its end in it.
        inside = [r for r in requests if low <= r.end and (r.end < high or index == n - 1)]
        times = [request.latency_ms for request in inside if request.error is None]
        found.append(
            Window(
                seconds=seconds,
                n=len(times),
                requests_per_s=len(times) / seconds,
                p50_ms=float(np.median(times)) if times else None,
            )
        )
    return tuple(found)


def stable(windows: Sequence[Window]) -> bool:
    """Whether requests/s and p50 of the last three windows lie within 10 % of their mean."""
    last = windows[-N_WINDOWS:]
    rates = [window.requests_per_s for window in last]
    medians = [window.p50_ms for window in last if window.p50_ms is not None]
    return len(medians) == N_WINDOWS and agree(rates) and agree(medians)


def agree(values: Sequence[float]) -> bool:
    """Whether the last three values lie within 10 % of their mean; fewer never do."""
    return len(values) >= N_WINDOWS and alike(values[-N_WINDOWS:])


def alike(values: Sequence[float]) -> bool:
    """Whether all values lie within 10 % of their mean."""
    mean = float(np.mean(values))
    return bool(np.all(np.abs(np.asarray(values) - mean) <= TOLERANCE * mean))


def percentiles(times: Sequence[float] | NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p95 and p99 in ms as fields of a record; None without times."""
    found = np.percentile(times, (50, 95, 99)).tolist() if len(times) else [None] * 3
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), found, strict=True))


def step(
    requests: Sequence[Request],
    begin: float,
    end: float,
    *,
    users: int | None = None,
    rate: float | None = None,
    client_cpu: float = 0.0,
    server_cpu: float | None = None,
    batch: float | None = None,
) -> Step:
    """Summarise the requests that ended between `begin` and `end`; at a fixed rate, those that were
    due then, however late they were answered."""
    inside = [r for r in requests if begin <= (r.end if rate is None else r.start) <= end]
    times = [request.latency_ms for request in inside if request.error is None]
    return Step(
        users=users,
        rate=rate,
        seconds=end - begin,
        n=len(inside),
        errors=len(inside) - len(times),
        requests_per_s=len(times) / (end - begin),
        **percentiles(times),
        batch=batch,
        client_cpu=client_cpu,
        server_cpu=server_cpu,
        stable=stable(cut(inside, begin, end)),
    )


def knee(steps: Sequence[Step]) -> Step | None:
    """Find the step with the fewest clients and 95 % of the best rate; None without answers."""
    best = max((step.requests_per_s for step in steps), default=0.0)
    reached = [step for step in steps if best and step.requests_per_s >= KNEE * best]
    return min(reached, key=lambda step: step.users or 0, default=None)
