"""HTTP connections with limits: uvicorn's, which has none on what has not become a request yet.

A client that is slow with its headers, sends too many of them, sends nothing at all, does not read
its answer or hangs up gives its place back.
"""

from __future__ import annotations

import asyncio
import json
import resource
from http import HTTPStatus
from typing import Any, ClassVar

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import Settings

TASK = "labelcurve.task"
"""Where a request's scope holds the task to cancel when its client hangs up; None once it was."""

HEAD_BYTES = 32 * 2**10
"""Of a request's line and headers."""

REST_BYTES = 64 * 2**20
"""Of a body that was refused, read so that its sender gets to see the answer."""

UNREAD_SECONDS = 30.0
"""That a client may leave its answer unread."""

SPARE_FILES = 256
"""File descriptors that are left to other things than connections."""


class Connection(HttpToolsProtocol):
    """One connection of one client."""

    leaving: ClassVar[bool] = False
    """Whether answers end their connections, because this process is about to end."""
    limit: ClassVar[int] = 4096
    head_seconds: ClassVar[float] = 10.0
    """That a request's line and headers may take, and the rest of a body that was refused."""
    everyone: ClassVar[set[Connection]] = set()

    @classmethod
    def install(cls, settings: Settings) -> None:
        """Makes uvicorn use this class, with as many connections as files may be open."""
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{cls.__module__}:{cls.__name__}"
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = settings.connections + SPARE_FILES
        files = files if hard == resource.RLIM_INFINITY else min(files, hard)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        cls.head_seconds = settings.head_timeout
        cls.limit = max(1, min(settings.connections, files - SPARE_FILES))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since: float | None = None
        self._bytes = 0
        self._unread = 0
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self.everyone.add(self)
        self._since = self.loop.time()
        if len(self.everyone) > self.limit:
            self._refuse(503, f"{self.limit} connections are open: try again")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: what it asked for is not computed any more."""
        super().connection_lost(exc)
        self.everyone.discard(self)
        if self.scope and (task := self.scope.get(TASK)) and not self.cycle.response_complete:
            self.scope[TASK] = None  # type: ignore[literal-required]
            task.cancel()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of part of one, or of several."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle:
            if self._since is None:
                self._since, self._bytes = self.loop.time(), 0
            self._bytes += len(data)
        super().data_received(data)
        if idle and self._since is not None:
            if self._refused_body():
                if self._bytes > REST_BYTES:
                    self.transport.abort()
            elif self._bytes > HEAD_BYTES:
                self._refuse(431, f"the headers have more than {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._since = None
        super().on_headers_complete()
        if self.leaving:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """A request's body ends."""
        super().on_message_complete()
        self.cycle.more_body = False

    def on_response_complete(self) -> None:
        """The answer is complete; the body of a request that was refused may not be."""
        if self.cycle.more_body:
            self._since, self._bytes = self.loop.time(), 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The bytes are no HTTP."""
        self._refuse(400, "the request is no valid HTTP")

    def _unsupported_upgrade_warning(self) -> None:
        """No line in the log for what any client may send."""

    def _refused_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _refuse(self, status: int, detail: str) -> None:
        phrase = HTTPStatus(status).phrase
        body = json.dumps(
            {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
        )
        again = "Retry-After: 1\r\n" if status == 503 else ""
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\n{again}Connection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    @classmethod
    async def sweep(cls) -> None:
        """Ends what takes too long, about once a second, for as long as the service runs."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            for connection in list(cls.everyone):
                connection._check(now)

    def _check(self, now: float) -> None:
        if self.transport.is_closing():
            # What it still had to send may never be read.
            pass
        elif self._since is not None and now - self._since > self.head_seconds:
            if self._refused_body():
                self.transport.abort()
            elif self._bytes:
                self._refuse(408, f"the headers did not arrive within {self.head_seconds:g} s")
            else:
                self.transport.close()
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > UNREAD_SECONDS:
            self.transport.abort()
