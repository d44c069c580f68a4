"""Histograms and counters exposed at `/metrics`.

The supervisor gives every worker a folder in PROMETHEUS_MULTIPROC_DIR: imported with it set,
prometheus_client sums over the workers. A request has a dozen observations, each of them two writes
(docs/log.md has what they cost). So they are buffered and written together, five times a second
and before `/metrics` is answered.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from labelcurve.bundle.manifest import CONFIDENCE_BOUNDS
from labelcurve.serving.telemetry import metric_files

WRITE_SECONDS = 0.2
"""Maximum age of the metrics where another process answers `/metrics`."""

_MILLISECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

logger = logging.getLogger("labelcurve")

metric_files.install()

# Requests are counted under the names and labels that BentoML and its dashboards use.
_SERVICE = ("service_name", "service_version", "runner_name")
REQUESTS = Counter(
    "bentoml_service_request",
    "Total number of HTTP requests",
    ["endpoint", "http_response_code", *_SERVICE],
)
REQUEST_SECONDS = Histogram(
    "bentoml_service_request_duration_seconds",
    "API HTTP request duration in seconds",
    ["endpoint", "http_response_code", *_SERVICE],
    buckets=_SECONDS,
)
REQUESTS_IN_PROGRESS = Gauge(
    "bentoml_service_request_in_progress",
    "Total number of HTTP requests in progress now",
    ["endpoint", *_SERVICE],
    multiprocess_mode="livesum",
)
LAST_REQUEST = Gauge(
    "bentoml_service_last_request_timestamp_seconds",
    "Timestamp of the last received request",
    _SERVICE,
    multiprocess_mode="max",
)

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
PREDICTIONS = Counter(
    "labelcurve_predictions",
    "Images by predicted class",
    ["model", "class"],
)
CONFIDENCE = Histogram(
    "labelcurve_confidence",
    "Probability of the predicted class, one image",
    ["model"],
    buckets=CONFIDENCE_BOUNDS,
)
REFERENCE_CLASSES = Gauge(
    "labelcurve_reference_class_ratio",
    "Share of each predicted class among the held-out images of training",
    ["model", "class"],
    multiprocess_mode="livemostrecent",
)
REFERENCE_CONFIDENCE = Gauge(
    "labelcurve_reference_confidence_ratio",
    "Share of the held-out images of training whose predicted class has at most this probability",
    ["model", "le"],
    multiprocess_mode="livemostrecent",
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
WORKERS_READY = Gauge(*metric_files.READY, multiprocess_mode="livesum")

LOG_LINES_DROPPED = Counter(
    "labelcurve_log_lines_dropped",
    "Log lines dropped because the output was not read",
)

_waiting: dict[Histogram, list[float]] = {}
_counted: dict[Counter, int] = {}
_unwritten = False
"""Whether the last attempt to write the files failed."""


def observe(histogram: Histogram, values: Iterable[float]) -> None:
    """Buffers observations of `histogram` (one without labels, or with its labels) for `write`."""
    _waiting.setdefault(histogram, []).extend(values)


def count(counter: Counter) -> None:
    """Buffers one increment of `counter` (one with its labels) for `write`."""
    _counted[counter] = _counted.get(counter, 0) + 1


def write() -> None:
    """Flushes buffered observations to their metrics, and writes the files of this worker.

    A full disk does not stop the service: it is logged once, and the files catch up once there is
    room again.
    """
    global _unwritten
    while _waiting:
        observe_all(*_waiting.popitem())
    while _counted:
        counter, n = _counted.popitem()
        counter.inc(n)
    try:
        metric_files.flush()
    except OSError as error:
        if not _unwritten:
            logger.warning("metrics cannot be written: %s. The service continues", error)
        _unwritten = True
    else:
        if _unwritten:
            logger.warning("metrics are written again")
        _unwritten = False


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """Observes many values at once, as `histogram.observe` would one by one; sorts `values`."""
    values.sort()
    histogram._sum.inc(sum(values))
    before = 0
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        if count := bisect_right(values, bound) - before:
            bucket.inc(count)
            before += count
