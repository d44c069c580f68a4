"""The BentoML service: its worker process and life cycle around our routes.

BentoML's typed API methods are not used: they cost half of the throughput. Its application is
used, with its routes replaced, which also closes those that expose its internals, and without its
middlewares. Its timeout leaves a timer for each request until it expires, and its spans are
recorded even without an exporter: together they stall the event loop in garbage collections of
100 to 500 ms. web/middleware.py does the work of the others at a fraction of their cost.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from functools import cache
from typing import Any

import bentoml
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.connections.connection import Connection, hide_invalid_requests
from labelcurve.serving.connections.shared import Connections
from labelcurve.serving.telemetry import logs, metric_files, metrics, tracing
from labelcurve.serving.telemetry.logs import AccessLog
from labelcurve.serving.telemetry.requests import Traffic
from labelcurve.serving.web.access import Access
from labelcurve.serving.web.app import App
from labelcurve.serving.web.middleware import Front, Gate
from labelcurve.serving.web.problems import HANDLERS
from labelcurve.serving.workers import bento, limits, loading

logger = logging.getLogger("labelcurve")


class Server:
    """The web server of this process: routes, connections, metrics and background tasks."""

    def __init__(self) -> None:
        """Wraps the models of `loading`; nothing runs yet.

        Raises:
            LabelcurveError: too few files may be open.
        """
        self.loading = loading.begin()
        settings = self.loading.settings
        logger.setLevel(logging.INFO)
        bento.enable_loggers("labelcurve", "asyncio", "py.warnings")
        logs.configure(settings.log_format)  # again: BentoML has replaced the handlers
        hide_invalid_requests()
        self.access_log = AccessLog(settings.log_format) if settings.access_log else None
        self.connections = Connections(
            limits.connections(settings.connections, raise_limit=True),
            settings.head_timeout,
            self.access_log,
        )
        self.app = App(self.loading.catalogue, self.loading.device, settings)
        self.traffic = Traffic(bento.service_labels())
        self._tasks: list[asyncio.Task[None]] = []

    def wrap(self, asgi: Any) -> ASGIApp:
        """BentoML's application with its routes and middlewares exchanged for ours."""
        settings = self.loading.settings
        asgi.user_middleware.clear()
        asgi.router.routes[:] = self.app.routes()
        if not settings.metrics_port:
            asgi.router.routes.append(Route("/metrics", self.metrics))
        asgi.router.redirect_slashes = False
        for kind, handler in HANDLERS.items():
            asgi.add_exception_handler(kind, handler)
        paths = frozenset(("/classify", *(route.path for route in asgi.router.routes)))
        run_dir = self.loading.run_dir
        access = Access(
            settings.api_keys, run_dir.path if run_dir and settings.workers > 1 else None
        )
        inner: ASGIApp = Gate(access, self.app.classify, asgi)
        if settings.cors:
            inner = _cors(inner, settings.cors)
        if tracing.wanted(settings.otlp_endpoint):
            inner = self.app.traces = tracing.Traces(inner, settings.otlp_endpoint, paths)
        return Front(inner, paths=paths, traffic=self.traffic, log=self.access_log)

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`: those of all workers; this one's are current."""
        self.write_metrics()
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        registry = metric_files.registry(folder) if folder else REGISTRY
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def begin(self) -> None:
        """Starts the tasks; called on the event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.leave)
        runs = (self._follow_models(), self._write_metrics(), self.connections.sweep())
        self._tasks = [asyncio.create_task(run) for run in runs]

    def end(self) -> None:
        """Ends the tasks and threads."""
        for task in self._tasks:
            task.cancel()
        self.write_metrics()
        if self.access_log:
            self.access_log.close()
        self.loading.catalogue.close()
        self.app.close()

    def leave(self) -> None:
        """Makes `/readyz` answer 503 and closes each connection with its next response."""
        self.app.leaving = self.connections.leaving = True
        metrics.WORKERS_READY.set(0)

    def write_metrics(self) -> None:
        """Brings the metrics up to date."""
        self.traffic.write()
        metrics.write()

    async def _write_metrics(self) -> None:
        while True:
            await asyncio.sleep(metrics.WRITE_SECONDS)
            try:
                self.write_metrics()
            except Exception:  # requests are still answered
                logger.exception("the metrics could not be written")
                await asyncio.sleep(60)

    async def _follow_models(self) -> None:
        if not await self._load():
            return
        watch = self.loading.settings.watch
        while watch > 0:
            await asyncio.sleep(watch)
            try:
                await self.loading.catalogue.look()
            except Exception:  # it must keep watching
                logger.exception("the models folder could not be followed")

    async def _load(self) -> bool:
        run_dir = self.loading.run_dir
        try:
            await self.loading.ended()
            self.loading.catalogue.warn_of_unlinked()
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
        # What is loaded stays: the collector need not traverse it again, nor run as often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()
        metrics.WORKERS_READY.set(1)
        if run_dir:
            run_dir.ready()
        return True


def _cors(inner: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    return CORSMiddleware(
        inner,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
        expose_headers=[
            "retry-after",
            "server-timing",
            "x-accepted",
            "x-model-name",
            "x-model-version",
            "x-request-id",
        ],
    )


@cache
def server() -> Server:
    """Returns the server of this process."""
    return Server()


def connect(**options: Any) -> Connection:
    """Creates a connection; called by uvicorn."""
    return Connection(server().connections, **options)


class Routed(bentoml.Service):  # type: ignore[misc]
    """A BentoML service that answers our routes, and no others."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """BentoML's application, wrapped."""
        bento.use_connections(f"{__name__}:connect")
        return server().wrap(super().to_asgi(is_main))


@bentoml.service(
    name="labelcurve",
    service_class=Routed,
    logging={"access": {"enabled": False}},  # ours is in telemetry/logs.py
    metrics={"enabled": False},  # ours are in telemetry/metrics.py
)
class Classifier:
    """Image classification."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        """Starts to load the models; `/livez` answers meanwhile."""
        server().begin()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        """Ends what `begin` started."""
        server().end()
