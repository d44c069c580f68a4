from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from labelcurve.serving.telemetry.logs import timings
from labelcurve.serving.telemetry.tracing import wanted
from tests.models import digit_png
from tests.serving.conftest import Service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector on loopback that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Keep)
        self.paths: list[str] = []
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []


class Keep(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.paths.append(self.path)
        for found in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(found.resource))
            for scope in found.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def test_a_request_is_a_trace_with_its_parts(
    collector: Collector, start_service: Callable[..., Service], digits_models: Path
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    service = start_service(digits_models, "--otlp-endpoint", endpoint)
    service.wait_until_ready()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    headers["x-forwarded-for"] = "203.0.113.7"  # as a proxy on this machine says it
    model = {"model": "digits-10"}
    classify = f"{service.url}/classify"
    answer = httpx.post(classify, content=digit_png(0), params=model, headers=headers)
    httpx.post(classify, content=b"no image")
    httpx.get(f"{service.url}/secret-in-a-path")
    httpx.get(f"{service.url}/readyz")
    assert service.stop(signal.SIGTERM) == 0  # what is left is sent before it ends

    assert set(collector.paths) == {"/v1/traces"}
    assert {resource["service.name"] for resource in collector.resources} == {"labelcurve"}
    spans = {bytes(span.span_id): span for span in collector.spans}
    servers = [span for span in spans.values() if span.kind == span.SPAN_KIND_SERVER]
    assert sorted(span.name for span in servers) == ["GET", "POST /classify", "POST /classify"]
    (ours,) = (span for span in servers if span.trace_id.hex() == TRACE)
    assert ours.parent_span_id.hex() == PARENT
    said = attributes(ours)
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == "/classify"
    assert said["http.response.status_code"] == 200
    assert said["labelcurve.model.name"] == "digits-10"
    assert said["labelcurve.model.version"] == answer.headers["x-model-version"]
    assert said["labelcurve.request_id"] == "mine"
    assert said["client.address"] == "203.0.113.7"
    parts = [span for span in spans.values() if span.parent_span_id == ours.span_id]
    parts.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in parts] == ["decode", "queue", "inference", "encode"]
    edges = [ours.start_time_unix_nano]
    for part in parts:
        assert part.trace_id == ours.trace_id
        edges += [part.start_time_unix_nano, part.end_time_unix_nano]
    assert [*edges, ours.end_time_unix_nano] == sorted([*edges, ours.end_time_unix_nano])
    assert edges[2:-1:2] == edges[3::2], "one begins where the other ends"
    took = timings(answer.headers["server-timing"].encode())
    for part in parts:
        nanoseconds = part.end_time_unix_nano - part.start_time_unix_nano
        assert nanoseconds == round(took[f"{part.name}_ms"] * 1e6)
    statuses = {attributes(span)["http.response.status_code"] for span in servers}
    assert statuses == {200, 415, 404}
    assert not any("secret" in str(span) for span in spans.values())


def test_a_collector_that_is_down_harms_no_request_and_delays_no_end(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--otlp-endpoint", "http://127.0.0.1:9")
    service.wait_until_ready()
    answer = httpx.post(f"{service.url}/classify", content=digit_png(0))
    assert answer.status_code == 200
    assert service.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("endpoint", "variables", "expected"),
    [
        (None, {}, False),
        ("http://127.0.0.1:4318", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ("http://127.0.0.1:4318", {"OTEL_SDK_DISABLED": "true"}, False),
        ("http://127.0.0.1:4318", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_unless_a_collector_is_named(
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    variables: dict[str, str],
    expected: bool,
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wanted(endpoint) is expected
