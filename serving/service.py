"""The BentoML service: its worker process, metrics and life cycle around our routes.

BentoML's typed API methods are not used: they cost half of the throughput. Its application is
taken as it is; its routes are exchanged, which also closes those that show its insides, and its
middlewares left out. Its timeout leaves a timer for each request until it has run out, and its
spans are recorded even where nobody exports them: the two together stall the event loop in garbage
collections of 100 to 500 ms. What the others do is in front.py, at a fraction of their cost.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import bentoml
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bundle.errors import LabelcurveError
from serving import loading, logs, metrics, tracing
from serving.access import Access
from serving.app import App
from serving.connection import Connection
from serving.front import Front, Gate
from serving.loading import catalogue, device, run_dir, settings
from serving.logs import AccessLog
from serving.problems import HANDLERS
from serving.traffic import Traffic

logger = logging.getLogger("labelcurve")
logger.setLevel(logging.INFO)
app = App(catalogue, device, settings)
traffic = Traffic()

# BentoML has configured the logging by the time that it imports this, and with it turned off every
# logger that there was: that of the service, since its models load meanwhile.
for name in ("labelcurve", "asyncio"):
    logging.getLogger(name).disabled = False
logging.getLogger("bentoml.serve").setLevel(logging.WARNING)
logs.configure(settings.log_format)

access_log = AccessLog(settings.log_format) if settings.access_log else None
Connection.install(settings, access_log)


Endpoint = Callable[[Request], Awaitable[Response]]


class Routed(bentoml.Service):  # type: ignore[misc]
    """A BentoML service that answers our routes and BentoML's `/metrics`, and no others."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """BentoML's application with its routes exchanged."""
        asgi: Any = super().to_asgi(is_main)
        for middleware in asgi.user_middleware:
            if middleware.cls is RunnerTrafficMetricsMiddleware:
                traffic.take(middleware.cls(asgi, *middleware.args, **middleware.kwargs))
        asgi.user_middleware.clear()
        theirs = {route.name: route for route in asgi.router.routes}
        asgi.router.routes[:] = app.routes()
        if not settings.metrics_port:
            asgi.router.routes.append(Route("/metrics", _up_to_date(theirs["metrics"].endpoint)))
        asgi.router.redirect_slashes = False
        for kind, handler in HANDLERS.items():
            asgi.add_exception_handler(kind, handler)
        paths = frozenset(("/classify", *(route.path for route in asgi.router.routes)))
        access = Access(settings.api_keys, settings.workers)
        inner: ASGIApp = Gate(access, app.classify, asgi)
        if settings.cors:
            inner = CORSMiddleware(
                inner,
                allow_origins=settings.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
                expose_headers=[
                    "retry-after",
                    "server-timing",
                    "x-model-name",
                    "x-model-version",
                    "x-request-id",
                ],
            )
        if tracing.wanted(settings.otlp_endpoint):
            inner = app.traces = tracing.Traces(inner, settings.otlp_endpoint, paths)
        return Front(inner, paths=paths, traffic=traffic, log=access_log)


def _up_to_date(answer: Endpoint) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        write_metrics()
        return await answer(request)

    return endpoint


def write_metrics() -> None:
    """Brings the metrics up to date."""
    metrics.write()
    traffic.write()


async def _write_metrics() -> None:
    while True:
        await asyncio.sleep(metrics.WRITE_SECONDS)
        try:
            write_metrics()
        except Exception:  # of a full disk, perhaps; requests are answered all the same
            logger.exception("the metrics could not be written")
            await asyncio.sleep(60)


@bentoml.service(
    name="labelcurve",
    service_class=Routed,
    logging={"access": {"enabled": False}},  # ours is in serving/logs.py
    metrics={
        "enabled": True,
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
        },
    },
)
class Classifier:
    """Image classification."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        """Starts to load the models; `/livez` answers meanwhile."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, leave)
        runs = (_live(), _write_metrics(), Connection.sweep())
        self._tasks = [asyncio.create_task(run) for run in runs]

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        """Ends the threads."""
        for task in self._tasks:
            task.cancel()
        write_metrics()
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
