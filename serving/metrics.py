"""Histograms and counters beside BentoML's own; all of them are answered by `/metrics`.

BentoML's supervisor gives every worker a folder in PROMETHEUS_MULTIPROC_DIR: imported with it set,
prometheus_client sums over the workers. There each observation is two writes to a mapped file, and
a request has a dozen of them (docs/log.md has what they cost). So values are kept and written
together, five times a second and before `/metrics` is answered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from prometheus_client import Counter, Histogram

WRITE_SECONDS = 0.2
"""How old `/metrics` may be where another process answers it."""

_MILLISECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

DECODE = Histogram(
    "labelcurve_decode_milliseconds",
    "File bytes to pixels, one image, without its wait for a thread",
    buckets=_MILLISECONDS,
)
QUEUE = Histogram(
    "labelcurve_queue_milliseconds",
    "What one image waits: for a thread that decodes it, where it is large, and for its batch",
    ["model"],
    buckets=_MILLISECONDS,
)
INFERENCE = Histogram(
    "labelcurve_inference_milliseconds",
    "ONNX Runtime, one batch",
    ["model"],
    buckets=_MILLISECONDS,
)
BATCH_SIZE = Histogram(
    "labelcurve_batch_size",
    "Images in a batch, padding not counted",
    ["model"],
    buckets=_SIZES,
)
SWAPS = Counter(
    "labelcurve_model_swaps",
    "Versions that took the place of another while it served, or were new",
    ["model"],
)
REFUSED = Counter(
    "labelcurve_model_refusals",
    "Versions that could not be served",
    ["model"],
)
CONNECTIONS_REFUSED = Counter(
    "labelcurve_connections_refused",
    "Connections that were ended with an error before there was a request",
    ["http_response_code"],
)

_waiting: dict[Histogram, list[float]] = {}


def observe(histogram: Histogram, values: Iterable[float]) -> None:
    """Keeps observations of `histogram` (one without labels, or with its labels) for `write`."""
    _waiting.setdefault(histogram, []).extend(values)


def write() -> None:
    """Writes what waits."""
    while _waiting:
        observe_all(*_waiting.popitem())


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """What `histogram.observe` does, for all of `values`, which it sorts, at once."""
    values.sort()
    histogram._sum.inc(sum(values))
    before = 0
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        if count := bisect_right(values, bound) - before:
            bucket.inc(count)
            before += count
