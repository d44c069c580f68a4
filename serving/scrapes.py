"""`/metrics` on a port of its own, in the supervisor, whose descriptors clients must not use up."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from http import HTTPStatus
from socketserver import TCPServer
from threading import BoundedSemaphore, Thread, Timer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

CONNECTIONS = 8
"""That are answered at once. Further ones wait in the kernel, where they cost no descriptor."""

SECONDS = 10.0
"""After which a connection is closed, whatever its client does."""


def serve(port: int, host: str, family: int, folder: str) -> None:
    """Answers from a thread of its own, for as long as the process runs.

    Args:
        port: on which nothing else listens.
        host: an IP address.
        family: of that address, as `socket` has it.
        folder: the workers' PROMETHEUS_MULTIPROC_DIR.

    Raises:
        OSError: the port cannot be listened on.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    metrics = make_wsgi_app(registry)

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
        """No line for what any client sends."""


class _Server(WSGIServer):
    def __init__(self, address: tuple[str, int], family: int) -> None:
        self.address_family = family
        self._places = BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without asking a name server for the name of this machine."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, once one of the places is free."""
        self._places.acquire()
        Thread(target=self._answer, args=(request, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none."""

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        timer = Timer(SECONDS, _hang_up, (request,))
        timer.daemon = True
        timer.start()
        try:
            self.finish_request(request, client_address)
        except Exception:  # of one connection, and no reason to have fewer places
            self.handle_error(request, client_address)
        finally:
            timer.cancel()
            self.shutdown_request(request)
            self._places.release()


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself
        connection.shutdown(socket.SHUT_RDWR)
