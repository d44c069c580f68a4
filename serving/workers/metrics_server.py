"""`/metrics` on a separate port, in the supervisor, whose descriptors clients must not exhaust.

`prometheus_client.start_http_server` starts a thread for each connection and waits forever for
its request.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from http import HTTPStatus
from socketserver import TCPServer
from threading import BoundedSemaphore, Thread, Timer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from labelcurve.serving.telemetry import metric_files

CONNECTIONS = 8
"""Maximum concurrent connections. Further ones wait in the kernel, at no cost in descriptors."""

SECONDS = 10.0
"""Time after which a connection is closed in any case."""


def serve(port: int, host: str, family: int, folder: str) -> None:
    """Answers from a separate thread for as long as the process runs.

    Args:
        port: on which nothing else listens.
        host: an IP address.
        family: of that address, as `socket` has it.
        folder: the workers' PROMETHEUS_MULTIPROC_DIR.

    Raises:
        OSError: the port cannot be listened on.
    """
    metric_files.install()
    metric_files.export_no_worker(folder)
    metrics = make_wsgi_app(metric_files.registry(folder))

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)
        status = HTTPStatus.NOT_FOUND
        start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
        return [b"only /metrics is here\n"]

    server = _Server((host, port), family)
    server.set_app(app)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Logs nothing per request."""


class _Server(WSGIServer):
    def __init__(self, address: tuple[str, int], family: int) -> None:
        self.address_family = family
        self._places = BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Binds without a DNS lookup of this machine's name."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handles the request in a thread once one of the slots is free."""
        self._places.acquire()
        Thread(target=self._answer, args=(request, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores client disconnects."""

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        timer = Timer(SECONDS, _disconnect, (request,))
        timer.daemon = True
        timer.start()
        try:
            self.finish_request(request, client_address)
        except Exception:  # of one connection; the server continues
            self.handle_error(request, client_address)
        finally:
            timer.cancel()
            self.shutdown_request(request)
            self._places.release()


def _disconnect(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself
        connection.shutdown(socket.SHUT_RDWR)
