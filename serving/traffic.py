"""BentoML's metrics of requests, without the middleware that writes them.

That one wraps `receive` and `send` and writes to six values for each request, which costs as much
as all that Starlette does. Names, labels and buckets are BentoML's own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware

from serving import metrics

SCRAPED = "/metrics"
"""Not counted, as BentoML has it: whoever asks for the counts is no traffic."""


class Traffic:
    """Counts requests in memory; `write` brings the metrics up to date."""

    def __init__(self) -> None:
        self._theirs: Any = None
        self._running: Counter[str] = Counter()
        self._ended: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def take(self, middleware: RunnerTrafficMetricsMiddleware) -> None:
        """Writes to the metrics of `middleware`, which is not run."""
        self._theirs = middleware

    def begin(self, endpoint: str) -> None:
        """A request of a known path."""
        self._running[endpoint] += 1

    def end(self, endpoint: str, status: int | None, seconds: float) -> None:
        """It ended; `status` is None where nothing was answered."""
        self._running[endpoint] -= 1
        if status is not None:
            self._ended[endpoint, status].append(seconds)

    def write(self) -> None:
        """Writes what happened since the last time."""
        theirs = self._theirs
        if theirs is None:
            return
        if not theirs._is_setup:
            theirs._setup()
        service = {
            "service_name": server_context.bento_name,
            "service_version": server_context.bento_version,
            "runner_name": server_context.service_name,
        }
        asked = False
        for endpoint, running in self._running.items():
            if endpoint == SCRAPED:
                continue
            theirs.metrics_request_in_progress.labels(endpoint=endpoint, **service).set(running)
            asked = asked or (running > 0 and self._counts(endpoint))
        ended, self._ended = self._ended, defaultdict(list)
        for (endpoint, status), seconds in ended.items():
            if endpoint != SCRAPED:
                labels = {"endpoint": endpoint, "http_response_code": status, **service}
                theirs.metrics_request_total.labels(**labels).inc(len(seconds))
                metrics.observe_all(theirs.metrics_request_duration.labels(**labels), seconds)
                asked = asked or self._counts(endpoint)
        if asked:
            theirs.metrics_last_request_timestamp.labels(**service).set(time.time())

    def _counts(self, endpoint: str) -> bool:
        """Whether a request of this path is traffic, and not a probe."""
        return not endpoint.startswith(tuple(self._theirs.skip_paths))
