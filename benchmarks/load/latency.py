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
from labelcurve.benchmarks.harness.windows import agree, percentiles
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

    The models take turns; the seconds are those of all models and batch sizes together, the threads
    ONNX Runtime's for one call. Returns latency by bundle name.
    """
    random = np.random.default_rng(0)
    sessions = {bundle.name: Session(bundle, threads, device) for bundle in bundles}
    sizes = {bundle.name: bundle.manifest.preprocessing.size for bundle in bundles}
    images = {
        name: random.integers(0, 256, (max(batches), size, size, 3), np.uint8)
        for name, size in sizes.items()
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
    return BatchLatency(
        batch=batch,
        n=len(times),
        **percentiles(times),
        p50_low_ms=min(medians),
        p50_high_ms=max(medians),
        images_per_s=batch / float(times.mean()) * 1e3,
        stable=agree(medians),
    )
