"""OpenTelemetry traces, disabled (and not imported) unless a collector is configured."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelcurve.serving.telemetry.logs import PROBES, REQUEST_ID, client, timings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

FLUSH_SECONDS = 2.0
"""Time limit for flushing the last spans when the service stops."""


def wanted(endpoint: str | None) -> bool:
    """Returns whether a collector is configured, by option or by OpenTelemetry's variables."""
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return bool(endpoint) or any(os.environ.get(name) for name in variables)


class Traces:
    """ASGI middleware that records a span per request, with child spans for its stages.

    The client's W3C trace context is continued. Sampling, resource, headers and time limits are
    set by OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, ...).
    """

    def __init__(self, inner: ASGIApp, endpoint: str | None, paths: frozenset[str]) -> None:
        """Sends spans to the OTLP/HTTP collector at `endpoint` (None: OpenTelemetry's variables).

        Args:
            inner: the application.
            endpoint: base URL, to which `/v1/traces` is added.
            paths: those that exist; others are not named in spans, since clients could send any.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._inner = inner
        self._paths = paths
        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "labelcurve"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("labelcurve")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._inner(scope, receive, send)
            return
        span = self._begin(scope)
        scope["trace_id"] = format(span.get_span_context().trace_id, "032x")

        async def traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(span, message)
            await send(message)

        try:
            await self._inner(scope, receive, traced)
        finally:
            span.end()

    def _begin(self, scope: Scope) -> Span:
        from opentelemetry.trace import SpanKind

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "url.scheme": scope["scheme"],
            "labelcurve.request_id": scope[REQUEST_ID],
        }
        name = scope["method"]
        if scope["path"] in self._paths:
            name = f"{name} {scope['path']}"
            attributes |= {"http.route": scope["path"], "url.path": scope["path"]}
        if address := client(scope):
            attributes["client.address"] = address
        if "user-agent" in headers:
            attributes["user_agent.original"] = headers["user-agent"][:256]
        context = self._propagator.extract(headers)
        return self._tracer.start_span(name, context, SpanKind.SERVER, attributes)

    def _answered(self, span: Span, message: Message) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        end = time.time_ns()
        status = message["status"]
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        headers = dict(message["headers"])
        if not span.is_recording() or b"server-timing" not in headers:
            return
        for part in ("name", "version"):
            value = headers[f"x-model-{part}".encode()].decode()
            span.set_attribute(f"labelcurve.model.{part}", value)
        # They follow one another and end where the answer begins.
        context = set_span_in_context(span)
        for name, milliseconds in reversed(timings(headers[b"server-timing"]).items()):
            begin = end - round(milliseconds * 1e6)
            child = self._tracer.start_span(name.removesuffix("_ms"), context, start_time=begin)
            child.end(end)
            end = begin

    def close(self) -> None:
        """Exports the remaining spans, for at most `FLUSH_SECONDS`."""
        thread = threading.Thread(target=self._provider.force_flush, daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)
