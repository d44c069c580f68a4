"""One model from a single client to saturation, and at fixed arrival rates.

In a closed loop clients wait for their answers, so a slow service gets fewer requests, and its
latency says little about users who arrive independently. The fixed rates cover that: arrivals of a
Poisson process, and latency from the moment when a request was due.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx
import numpy as np

from labelcurve.benchmarks.harness.processes import cpu_seconds
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.harness.windows import BUSY, knee, step
from labelcurve.benchmarks.load import load
from labelcurve.benchmarks.options import CLIENTS
from labelcurve.benchmarks.record import Saturation, Step

SHARES = (0.3, 0.6, 0.9)
"""Fixed rates, as shares of the best rate of the closed loop."""
SECONDS_A_STEP = 1.5
"""Overhead of a step: users start, locust polls once a second."""


Sample = tuple[float, float, float, float]
"""The time, and CPU seconds, images and batches of a service until then; NaN where unknown."""


@contextmanager
def sampled(server: Server, model: str) -> Iterator[list[Sample]]:
    """Sample a service twice a second until the block ends."""
    samples: list[Sample] = []
    end = Event()

    def look() -> None:
        cpu = cpu_seconds(server.pid)
        counts = batch_counts(server.url, model)
        samples.append((time.time(), np.nan if cpu is None else cpu, *counts))

    def work() -> None:
        while not end.wait(0.5):
            look()

    look()
    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()
        look()


def between(
    samples: Sequence[Sample], begin: float, end: float
) -> tuple[float | None, float | None]:
    """Busy cores and mean images per batch between two moments; None where unknown."""
    rows = np.asarray(samples)
    cpu, images, batches = (
        float(np.diff(np.interp((begin, end), rows[:, 0], column))[0]) for column in rows.T[1:]
    )
    busy = None if np.isnan(cpu) else cpu / (end - begin)
    return busy, images / batches if batches > 0 and not np.isnan(batches) else None


def batch_counts(url: str, model: str) -> tuple[float, float]:
    """Read images and batches so far from `GET /metrics`; NaN where they are missing."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text
    except httpx.HTTPError:
        return np.nan, np.nan
    found = []
    for kind in ("sum", "count"):
        pattern = rf'^labelcurve_batch_size_{kind}\{{model="{re.escape(model)}"\}} (\S+)'
        match = re.search(pattern, text, re.MULTILINE)
        found.append(float(match[1]) if match else np.nan)
    return found[0], found[1]


def measure(
    server: Server,
    folder: Path,
    model: str,
    *,
    users: Sequence[int] = CLIENTS,
    shares: Sequence[float] = SHARES,
    seconds: float,
    say: Callable[[str], None] = print,
) -> Saturation:
    """Step through numbers of clients, then through fixed rates, for so many seconds each.

    The fixed rates are given as shares of the best rate of the closed loop; `folder` is that of
    `load.images_for`.

    Raises:
        LabelcurveError: locust measured nothing.
    """

    def run(options: Sequence[str], length: float, rate: float | None = None) -> Iterator[Step]:
        with sampled(server, model) as samples:
            record, _ = load.run(server, folder, model, options, length)
        requests = load.requests(record)
        whole = {"begin": record["spawned"], "end": record["stopping"]}
        whole["cpu_seconds"] = record["cpu_seconds"]
        for mark in [whole] if rate else record["steps"]:
            begin, end = mark["begin"], mark["end"]
            busy, batch = between(samples, begin, end)
            found = step(
                requests, begin, end, users=mark.get("users"), rate=rate,
                client_cpu=mark["cpu_seconds"] / (end - begin), server_cpu=busy, batch=batch,
            )  # fmt: skip
            say(f"  {model}: {describe(found)}")
            yield found

    options = ["--steps", ",".join(map(str, users)), "--step-seconds", f"{seconds:g}"]
    steps = list(run(options, len(users) * (seconds + SECONDS_A_STEP)))
    at = knee(steps)
    best = max((found.requests_per_s for found in steps), default=0.0)
    rates: list[Step] = []
    for share in shares if best else ():
        rate = round(share * best, 1)
        options = ["--users", "1", "--spawn-rate", "1", "--rate", str(rate)]
        rates += run([*options, "--measure", f"{seconds:g}"], seconds, rate)
    return Saturation(
        model=model,
        steps=tuple(steps),
        knee=at.users if at else None,
        client_bound=bool(at and at.client_cpu > BUSY),
        rates=tuple(rates),
    )


def describe(found: Step) -> str:
    """Describe a step in a line."""
    how = f"{found.users} clients" if found.users else f"{found.rate:g} arrivals/s"
    text = f"{how}: {found.requests_per_s:,.0f} requests/s"
    if found.p50_ms is not None and found.p99_ms is not None:
        text += f", p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms"
    return text + ("" if found.stable else ", unstable")


def doubts(found: Saturation) -> list[str]:
    """List warnings about these figures."""
    texts = []
    if errors := sum(s.errors for s in (*found.steps, *found.rates)):
        texts.append(f"{found.model}: {errors:,} requests FAILED on the way to saturation")
    if found.client_bound:
        texts.append(
            f"{found.model}: at saturation the load generator was the bottleneck: the knee is its "
            "limit, not the service's"
        )
    return texts
