"""HTTP connections with limits: uvicorn's, which has none on what has not become a request yet.

A client that is slow with its headers, sends too many of them, sends nothing at all, does not read
its answer or hangs up gives its place back. What is answered here, before there is a request, has
an id, the security headers and a line in the access log like every other answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving import metrics
from serving.access import HEADERS
from serving.logs import ANSWERED, HEADER, REQUEST_ID, AccessLog, given, new_id
from serving.problems import MEDIA_TYPE
from serving.settings import Settings

TASK = "labelcurve.task"
"""Where a request's scope holds the task to cancel when its client hangs up; None once it was."""

HEAD_BYTES = 32 * 2**10
"""Of a request's line and headers."""

FIRST_SECONDS = 0.5
"""That a client has for its first request when the service ends just after it connected."""

REST_BYTES = 64 * 2**20
"""Of a body that was refused, read so that its sender gets to see the answer."""

UNREAD_SECONDS = 30.0
"""That a client may leave its answer unread."""

LINGER_SECONDS, LINGERING = 2.0, 128
"""How long, and how many, refused connections are kept open for reading: closed with bytes unread,
they would be reset, and their clients see that in place of the answer."""

OFFERS = frozenset((b"upgrade", b"http2-settings"))
"""Headers of a client that would rather speak another protocol."""

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
    lingering: ClassVar[set[Connection]] = set()
    """Those that were refused; they count no more."""
    log: ClassVar[AccessLog | None] = None

    @classmethod
    def install(cls, settings: Settings, log: AccessLog | None) -> None:
        """Makes uvicorn use this class, with as many connections as files may be open."""
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{cls.__module__}:{cls.__name__}"
        # A line in the log for whatever any client sends is for those who want one: the access log.
        logging.getLogger("uvicorn.error").addFilter(_not_of_a_client)
        cls.log = log
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
        self._refused_at: float | None = None
        self._reading = False
        self._offered = self._large = False
        self._fed = b""
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
        self.lingering.discard(self)
        if self.scope and (task := self.scope.get(TASK)) and not self.cycle.response_complete:
            self.scope[TASK] = None  # type: ignore[literal-required]
            task.cancel()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of part of one, or of several."""
        if self._refused_at is not None:
            self._bytes += len(data)
            if self._bytes > REST_BYTES:
                self.transport.abort()
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle:
            if self._since is None:
                self._since, self._bytes = self.loop.time(), 0
            self._bytes += len(data)
        self._fed = data
        super().data_received(data)
        self._fed = b""
        if idle and self._since is not None and self._refused_at is None:
            if self._refused_body():
                if self._bytes > REST_BYTES:
                    self.transport.abort()
            elif self._bytes > HEAD_BYTES:
                self._refuse(431, f"the headers have more than {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A request's first line begins."""
        super().on_message_begin()
        self._reading = True

    def on_headers_complete(self) -> None:
        """A request begins."""
        if len(self._fed) > HEAD_BYTES and self._head() > HEAD_BYTES:  # it came in one piece
            self._large = True
            raise ValueError  # the parser stops, and calls `send_400_response`
        self._since = None
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offered = True
            return
        super().on_headers_complete()
        if self.leaving:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """A request's body ends."""
        if self._offered:
            return
        super().on_message_complete()
        self._reading = False
        self.cycle.more_body = False
        # uvicorn pauses it when a body is large and has not been fetched, and would not hear then
        # that the client hangs up. Another request on its heels pauses it again.
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """The answer is complete; the body of a request that was refused may not be."""
        if self.cycle.more_body:
            self._since, self._bytes = self.loop.time(), 0
        super().on_response_complete()

    def shutdown(self) -> None:
        """The service ends; a first request that is on its way is answered all the same."""
        if self.cycle is None and not self.transport.is_closing():
            self.loop.call_later(FIRST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """The bytes are no HTTP, or too many."""
        if self._large:
            self._refuse(431, f"the headers have more than {HEAD_BYTES} bytes")
        else:
            self._refuse(400, "the request is no valid HTTP")

    def _should_upgrade(self) -> bool:
        """Never, whatever libraries are installed."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Goes on with HTTP/1.1, as clients that offer HTTP/2 expect; no line in the log for it.

        The parser takes a body for the other protocol's and nothing after it: what it was given is
        given to a new one, without the offer.
        """
        if not self._offered:
            return
        self._offered = False
        rest = self._fed[sys.exception().args[0] :]  # type: ignore[union-attr]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s" % (method, self.url, version)]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in OFFERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._fed = b"\r\n".join([*head, b"", rest])
        HttpToolsProtocol.data_received(self, self._fed)

    def _head(self) -> int:
        """Bytes of the request's line and headers."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refused_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _refuse(self, status: int, detail: str) -> None:
        """Answers in place of the application, and ends the connection."""
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun and (self.cycle.response_started or self.cycle.scope is not self.scope):
            self.transport.abort()  # the place of another answer is none for this one
            return
        # Of what is being read, as far as it has come.
        scope: dict[str, Any] = {"method": "-", "path": "-", "headers": []}
        if self._reading:
            path = self.url.partition(b"?")[0].decode("latin-1")
            scope |= {"path": path or "-", **self.scope}
        request_id = scope.get(REQUEST_ID) or (given(scope) or new_id()).decode()
        phrase = HTTPStatus(status).phrase
        problem = {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
        body = json.dumps({**problem, "request_id": request_id}).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *HEADERS,
            (HEADER, request_id.encode()),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        lines = [b"HTTP/1.1 %d %s" % (status, phrase.encode())]
        lines += [b"%s: %s" % header for header in headers]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self._linger()
        if begun:  # its body broke off: the application hears that its client is gone
            self.scope[ANSWERED] = status  # type: ignore[literal-required]
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            metrics.CONNECTIONS_REFUSED.labels(status).inc()
        if self.log:
            scope |= {REQUEST_ID: request_id, "client": self.client}
            seconds = self.loop.time() - self._since if self._since is not None else 0.0
            self.log.add(scope, {"status": status, "headers": headers}, seconds)

    def _linger(self) -> None:
        self.everyone.discard(self)
        self._refused_at, self._bytes = self.loop.time(), 0
        if len(self.lingering) < LINGERING and self.transport.can_write_eof():
            self.lingering.add(self)
            self.transport.write_eof()
        else:
            self.transport.close()

    @classmethod
    async def sweep(cls) -> None:
        """Ends what takes too long, about once a second, for as long as the service runs."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            for connection in [*cls.everyone, *cls.lingering]:
                connection._check(now)

    def _check(self, now: float) -> None:
        if self.transport.is_closing():
            # What it still had to send may never be read.
            pass
        elif self._refused_at is not None:
            if now - self._refused_at > LINGER_SECONDS:
                self.transport.abort()
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


def _not_of_a_client(record: logging.LogRecord) -> bool:
    return record.msg != "Invalid HTTP request received."
