from __future__ import annotations

import time

import pytest
from prometheus_client import REGISTRY

from labelcurve.serving.telemetry.requests import Traffic

SERVICE = {"service_name": "counted", "service_version": "1", "runner_name": "test"}


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"bentoml_service_{name}", {**labels, **SERVICE})


def test_requests_are_counted_by_path_and_status_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    traffic = Traffic(SERVICE)
    for _ in range(3):
        traffic.begin("/classify")
    traffic.end("/classify", 200, 0.004)
    traffic.end("/classify", 415, 0.5)
    for _ in range(2):  # what was written is not counted again
        traffic.write()
    ok = {"endpoint": "/classify", "http_response_code": "200"}
    assert value("request_total", **ok) == 1
    assert value("request_total", **ok | {"http_response_code": "415"}) == 1
    assert value("request_duration_seconds_sum", **ok) == 0.004
    assert value("request_duration_seconds_bucket", le="0.002", **ok) == 0
    assert value("request_duration_seconds_bucket", le="0.005", **ok) == 1
    assert value("request_in_progress", endpoint="/classify") == 1
    assert value("last_request_timestamp_seconds") == 1000
    traffic.end("/classify", None, 9.0)  # the client disconnected
    traffic.write()
    assert value("request_in_progress", endpoint="/classify") == 0
    assert value("request_total", **ok) == 1

    now = 2000.0
    traffic.begin("/readyz")
    traffic.begin("/metrics")
    traffic.write()
    traffic.end("/readyz", 200, 0.1)
    traffic.end("/metrics", 200, 0.1)
    traffic.write()
    assert value("request_total", endpoint="/readyz", http_response_code="200") == 1
    assert value("request_in_progress", endpoint="/metrics") is None
    assert value("request_total", endpoint="/metrics", http_response_code="200") is None
    assert value("last_request_timestamp_seconds") == 1000, "probes are no requests"
