"""Latency and throughput of ONNX Runtime sessions by batch size.

The models take turns in every round, so that other work on the machine slows them equally: figures
of one run are comparable, those of two runs hardly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.session import PROVIDERS, Device, Session
from labelcurve.benchmarks.harness.windows import agree
from labelcurve.benchmarks.record import BatchLatency, Latency
from labelcurve.bundle.store import Bundle

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CALLS = 16
"""Images per round and batch size, in at least two calls."""
MIN_ROUNDS = 3
WINDOWS = 5
"""Windows of the run whose medians give the spread."""


def measure(
    bundles: Sequence[Bundle],
    seconds: float,
    *,
    threads: int = 1,
    device: Device = "cpu",
    batches: Sequence[int] = BATCHES,
    say: Callable[[str], None] = print,
) -> dict[str, Latency]:
    """Time calls in rounds until `seconds` have passed, at least `MIN_ROUNDS` rounds.

    Args:
        bundles: the models, which take turns.
        seconds: of all models and batch sizes together.
        threads: ONNX Runtime's threads for one call.
        device: on which the graphs run.
        batches: batch sizes.
        say: receives progress.

    Returns:
        Latency by bundle name.
    """
    random = np.random.default_rng(0)
    sessions = {bundle.name: Session(bundle, threads, device) for bundle in bundles}
    images = {
        bundle.name: random.integers(
            0, 256, (max(batches), *(2 * (bundle.manifest.preprocessing.size,)), 3), np.uint8
        )
        for bundle in bundles
    }
    a_round = sum(
        _calls(batch) * _times(session, images[name][:batch], 1)[0] / 1e3
        for name, session in sessions.items()
        for batch in batches
    )
    say(f"  about {max(seconds, MIN_ROUNDS * a_round):.0f} s, at least {MIN_ROUNDS} rounds")
    calls: dict[tuple[str, int], list[list[float]]] = {
        (name, batch): [] for name in sessions for batch in batches
    }
    start = perf_counter()
    rounds = 0
    while rounds < MIN_ROUNDS or perf_counter() - start < seconds:
        for batch in batches:
            for name, session in sessions.items():
                times = _times(session, images[name][:batch], _calls(batch))
                calls[name, batch].append(times)
        rounds += 1
    say(f"  {rounds} rounds in {perf_counter() - start:.1f} s")
    return {
        name: Latency(
            provider=PROVIDERS[device],
            threads=threads,
            rounds=rounds,
            batches=tuple(_summary(batch, calls[name, batch]) for batch in batches),
        )
        for name in sessions
    }


def _calls(batch: int) -> int:
    """Calls of a batch size in a round."""
    return max(2, CALLS // batch)


def _times(session: Session, images: NDArray[Any], n: int) -> list[float]:
    times = []
    for _ in range(n):
        start = perf_counter()
        session.probabilities(images)
        times.append((perf_counter() - start) * 1e3)
    return times


def _summary(batch: int, rounds: list[list[float]]) -> BatchLatency:
    times = np.asarray(rounds).ravel()
    windows = np.array_split(np.asarray(rounds), min(WINDOWS, len(rounds)))
    medians = [float(np.median(window)) for window in windows]
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    return BatchLatency(
        batch=batch,
        n=len(times),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        p50_low_ms=min(medians),
        p50_high_ms=max(medians),
        images_per_s=batch / float(times.mean()) * 1e3,
        stable=agree(medians),
    )
