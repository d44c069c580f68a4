"""The BentoML service: its worker process, middlewares, metrics and life cycle around our routes.

BentoML's typed API methods are not used: they cost half of the throughput. Its application is
taken as it is and its routes are exchanged, which also closes those that show its insides.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from functools import lru_cache
from typing import Any

import bentoml
from _bentoml_impl.server.app import ContextMiddleware
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from bundle.errors import LabelcurveError
from serving import loading, logs, tracing
from serving.access import Access
from serving.app import App
from serving.connection import Connection
from serving.loading import catalogue, device, run_dir, settings
from serving.logs import AccessLog, Requests
from serving.problems import HANDLERS

UNKNOWN = "/unknown"
"""The path under which the metrics count requests for paths that do not exist."""

_LEFT_OUT = (TimeoutMiddleware, OpenTelemetryMiddleware, ContextMiddleware)
"""BentoML's timeout leaves a timer for each request until it has run out (`App.classify` takes its
own back when the request is done), and spans are recorded even where nobody exports them: the two
together stall the event loop in garbage collections of 100 to 500 ms. The context is for typed API
methods, which are not used, and costs 6 % of a request that does nothing else."""

logger = logging.getLogger("labelcurve")
logger.setLevel(logging.INFO)
app = App(catalogue, device, settings)

# BentoML has configured the logging by the time that it imports this.
logging.getLogger("bentoml.serve").setLevel(logging.WARNING)
logs.configure(settings.log_format)

access_log = AccessLog(settings.log_format) if settings.access_log else None
Connection.install(settings, access_log)


class Routed(bentoml.Service):  # type: ignore[misc]
    """A BentoML service that answers our routes and BentoML's `/metrics`, and no others."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """BentoML's application with its routes exchanged."""
        asgi: Any = super().to_asgi(is_main)
        theirs = [route for route in asgi.router.routes if route.name == "metrics"]
        if settings.metrics_port:
            theirs = []
        asgi.router.routes[:] = [*app.routes(), *theirs]
        asgi.user_middleware[:] = [
            Middleware(Traffic, *m.args, **m.kwargs)
            if m.cls is RunnerTrafficMetricsMiddleware
            else m
            for m in asgi.user_middleware
            if m.cls not in _LEFT_OUT
        ]
        if settings.cors:
            asgi.add_middleware(
                CORSMiddleware,
                allow_origins=settings.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
                expose_headers=[
                    "x-model-name",
                    "x-model-version",
                    "server-timing",
                    "x-request-id",
                ],
            )
        asgi.user_middleware.append(Middleware(Access, settings.api_keys, settings.workers))
        for kind, handler in HANDLERS.items():
            asgi.add_exception_handler(kind, handler)
        paths = frozenset(route.path for route in asgi.router.routes)
        inner: ASGIApp = KnownPaths(asgi, paths)
        if tracing.wanted(settings.otlp_endpoint):
            inner = app.traces = tracing.Traces(inner, settings.otlp_endpoint, paths)
        return Requests(inner, access_log)


class Traffic(RunnerTrafficMetricsMiddleware):
    """BentoML's request metrics, which look the same labels up again for each request."""

    def _setup(self, *arguments: Any, **named: Any) -> None:
        super()._setup(*arguments, **named)
        for name, metric in vars(self).items():
            if name.startswith("metrics_") and hasattr(metric, "labels"):
                # Paths are known ones (`KnownPaths`): there are few combinations.
                metric.labels = lru_cache(1024)(metric.labels)


class KnownPaths:
    """Gives paths that do not exist one name: the metrics have a label for each path."""

    def __init__(self, inner: ASGIApp, paths: frozenset[str]) -> None:
        self._inner = inner
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if "path" in scope and scope["path"] not in self._paths:
            scope = {**scope, "path": UNKNOWN, "raw_path": UNKNOWN.encode()}
        await self._inner(scope, receive, send)


@bentoml.service(
    name="labelcurve",
    service_class=Routed,
    logging={"access": {"enabled": False}},  # ours is in serving/logs.py
    metrics={
        "duration": {
            "buckets": [
                0.0005,
                0.001,
                0.002,
                0.005,
                0.01,
                0.02,
                0.05,
                0.1,
                0.2,
                0.5,
                1.0,
                2.0,
                5.0,
                10.0,
            ]
        }
    },
)
class Classifier:
    """Image classification."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        """Starts to load the models; `/livez` answers meanwhile."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, leave)
        self._tasks = [asyncio.create_task(run) for run in (_live(), Connection.sweep())]

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        """Ends the threads."""
        for task in self._tasks:
            task.cancel()
        catalogue.close()
        app.close()


def leave() -> None:
    """From now on `/readyz` says 503, and connections end with the answer that they wait for."""
    app.leaving = Connection.leaving = True


async def _live() -> None:
    if not await _load():
        return
    while settings.watch > 0:
        await asyncio.sleep(settings.watch)
        try:
            await catalogue.look()
        except Exception:  # it must go on looking
            logger.exception("the models folder could not be followed")


async def _load() -> bool:
    try:
        await loading.ended()
        catalogue.warn_of_unlinked()
    except Exception as error:
        message = str(error)
        if not isinstance(error, LabelcurveError):
            logger.exception("the models could not be loaded")
            message = f"the models could not be loaded: {message}"
        if run_dir:
            run_dir.fail(message)
        else:
            logger.error(message)
        os.kill(os.getpid(), signal.SIGTERM)
        return False
    # What is loaded stays: the collector need not walk over it again, nor run as often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    if run_dir:
        run_dir.ready()
    return True
