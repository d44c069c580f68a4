"""Request metrics, counted in memory and written in batches.

A middleware like BentoML's, which wraps `receive` and `send` and updates six values per request,
costs as much as all of Starlette. Names, labels and buckets are BentoML's own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from labelcurve.serving.telemetry import metrics
from labelcurve.serving.telemetry.logs import PROBES

SCRAPED = "/metrics"
"""Not counted, as in BentoML: scrapes are not traffic."""


class Traffic:
    """Counts requests in memory; `write` brings the metrics up to date."""

    def __init__(self, service: dict[str, str] | None = None) -> None:
        """Starts with no requests.

        Args:
            service: the labels that never change: service_name, service_version, runner_name.
        """
        names = ("service_name", "service_version", "runner_name")
        self._service = service or dict.fromkeys(names, "labelcurve")
        self._running: Counter[str] = Counter()
        self._ended: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def begin(self, endpoint: str) -> None:
        """Records the start of a request."""
        self._running[endpoint] += 1

    def end(self, endpoint: str, status: int | None, seconds: float) -> None:
        """Records the end of a request; `status` is None if no response was sent."""
        self._running[endpoint] -= 1
        if status is not None:
            self._ended[endpoint, status].append(seconds)

    def write(self) -> None:
        """Adds the requests since the last call to the metrics."""
        asked = False
        for endpoint, running in self._running.items():
            if endpoint != SCRAPED:
                labels = {"endpoint": endpoint, **self._service}
                metrics.REQUESTS_IN_PROGRESS.labels(**labels).set(running)
                asked = asked or (running > 0 and endpoint not in PROBES)
        ended, self._ended = self._ended, defaultdict(list)
        for (endpoint, status), seconds in ended.items():
            if endpoint != SCRAPED:
                labels = {"endpoint": endpoint, "http_response_code": str(status), **self._service}
                metrics.REQUESTS.labels(**labels).inc(len(seconds))
                metrics.observe_all(metrics.REQUEST_SECONDS.labels(**labels), seconds)
                asked = asked or endpoint not in PROBES
        if asked:
            metrics.LAST_REQUEST.labels(**self._service).set(time.time())
