"""HTTP connections with limits: uvicorn has none before a request is complete.

A client that is slow with its headers, sends too many of them, sends nothing at all, does not read
its response or disconnects loses its place. Responses sent here, before there is a request, have
an id, the security headers and a line in the access log like all others.

A request gets one answer. Where that came before the end of its body, the rest is read and dropped
within bounds; a connection that ends with its answer is closed for writing first and read a while
longer, because closing it with bytes unread resets it, and the client (or the proxy in front, which
makes a 502 of it) loses the answer.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from labelcurve.serving.connections.outlet import Outlet
from labelcurve.serving.connections.shared import Connections
from labelcurve.serving.telemetry import metrics
from labelcurve.serving.telemetry.logs import (
    ANSWERED,
    HEADER,
    PEER,
    REQUEST_ID,
    given,
    new_id,
)
from labelcurve.serving.web.access import HEADERS
from labelcurve.serving.web.problems import MEDIA_TYPE, document

TASK = "labelcurve.task"
"""Key in the scope of the task to cancel when the client disconnects; None once cancelled."""

HEAD_BYTES = 32 * 2**10
"""Limit of a request's line and headers."""

FIRST_SECONDS = 0.5
"""Time for a client's first request if the service stops right after it connected."""

REST_BYTES = 64 * 2**20
"""Limit for draining a body answered before its end, so that its sender sees the response."""

OVERTAKEN_BYTES, OVERTAKEN_SECONDS = 2**20, 1.0
"""Limits of the rest of a body that its answer waits for on a kept connection (see `outlet`)."""

UNREAD_SECONDS = 30.0
"""Time for which a client may leave its response unread."""

LINGER_SECONDS, LINGER_IDLE_SECONDS, LINGERING = 20.0, 2.0, 128
"""Limits for draining connections after their last response: in all, without a byte, how many."""

Headers = Sequence[tuple[bytes, bytes]]

OFFERS = frozenset((b"upgrade", b"http2-settings"))
"""Headers of a client that offers another protocol."""


class Connection(HttpToolsProtocol):
    """One connection of one client."""

    def __init__(self, shared: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.access_log = False  # ours is in telemetry/logs.py
        self._shared = shared
        self._since: float | None = None
        """Start of the wait for a request's head, or of the silence before the first one."""
        self._rest_since: float | None = None
        """Start of reading the rest of a body that was answered before its end."""
        self._ended_at: float | None = None
        """Time of the last response."""
        self._heard_at = 0.0
        self._reading = False
        """Whether a request has begun and its body has not ended."""
        self._offered = self._completed = self._mixed = False
        self._fault = 400, "the request is not valid HTTP"
        """The answer to a request that the parser does not accept, or that is stopped here."""
        self._refusal: tuple[int, str] | None = None
        """Error response to send after those of the pending requests."""
        self._fed = self._again = b""
        self._bytes = 0
        self._between = 0
        """Bytes since the last ones of a body that were part of it, or began a chunk."""
        self._outlet: Outlet | None = None
        """The outlet of the request whose body is being read."""
        self._unread = 0
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        shared = self._shared
        shared.everyone.add(self)
        self._since = self.loop.time()
        if len(shared.everyone) > shared.limit and not shared.make_room():
            self._refuse(503, f"{shared.limit} connections are open: try again")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the client disconnects: its pending inference is cancelled."""
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # not this object, which it would keep alive
        self._outlet = None
        self._shared.forget(self)
        self._shared.lingering.discard(self)
        scope = cast("dict[str, Any]", self.scope)  # which has keys of ours, too
        if scope and (task := scope.get(TASK)) and not self.cycle.response_complete:
            scope[TASK] = None
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of part of one, or of several."""
        if self._ended_at is not None or self._refusal is not None:
            self._drop(data)
            return
        self._fed, self._completed = data, False
        self._between += len(data)
        super().data_received(data)
        while self._again:  # one request after another that offers another protocol
            self._fed, self._again = self._again, b""
            super().data_received(self._fed)
        self._fed = b""
        if self._ended_at is not None:
            return
        if self._reading and self._since is None and self._between > HEAD_BYTES:
            self._interrupt(431, f"a chunk's header or the trailers have over {HEAD_BYTES} bytes")
        elif self._since is not None:  # no request yet
            self._bytes += len(data)
            if self._bytes > HEAD_BYTES:
                self._refuse(431, f"the headers have more than {HEAD_BYTES} bytes")
        elif self._rest_since is not None:
            self._drop(data)

    def _drop(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        self._bytes += len(data)
        if self._bytes > OVERTAKEN_BYTES and self._outlet:
            self._outlet.release()
        if self._bytes > REST_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request's first line begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[PEER] = self.client
        self._reading = True
        # Not at the first bytes: empty lines between requests, which old clients send, do not
        # count.
        self._shared.idle.pop(self, None)
        # Where it shares a packet with the previous request, its size there is unknown: not
        # counted.
        self._mixed = self._completed
        self._bytes = -len(self._fed) if self._mixed else 0
        if self._since is None:
            self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers, which nothing here needs, are dropped (RFC 9110, 6.5.1)."""
        if self._since is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Part of a request's body."""
        self._between = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """A chunk of a body begins, or its trailers."""
        self._between = 0

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._between = 0
        if (self._mixed or len(self._fed) > HEAD_BYTES) and self._head() > HEAD_BYTES:
            self._fault = 431, f"the headers have more than {HEAD_BYTES} bytes"
            raise ValueError  # the parser stops, and calls `send_400_response`
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            self._fault = 400, f"{hosts} Host headers: HTTP/1.1 asks for exactly one"
            raise ValueError
        coding = b", ".join(v for name, v in self.headers if name == b"transfer-encoding")
        if coding and coding.strip().lower() != b"chunked":
            named = coding[:80].decode("latin-1")
            self._fault = 501, f"Transfer-Encoding {named!r} is not accepted: allowed is chunked"
            raise ValueError
        self._since = None
        self._shared.idle.pop(self, None)
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offered = True
            return
        super().on_headers_complete()
        has_body = self.scope["method"] != "HEAD"
        self._outlet = Outlet(self.transport, self._linger, has_body=has_body)
        self.cycle.transport = self._outlet  # type: ignore[assignment]
        # A client that waits for 100 Continue may send no body after another response.
        if self._shared.leaving or self.expect_100_continue:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """A request's body ends."""
        if self._offered:
            return
        super().on_message_complete()
        self._reading = False
        self._completed = True
        self._rest_since = None
        self.cycle.more_body = False
        if self._outlet:
            self._outlet.release()
            self._outlet = None
        # uvicorn pauses it when a body is large and has not been fetched, and would then not notice
        # a disconnect. A pipelined request pauses it again.
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """The answer is complete; the body of its request may not be."""
        if self._ended_at is not None:
            self.server_state.total_requests += 1
            return
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:  # as uvicorn does, but without a timer for the silence that follows
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self._shared.idle[self] = self.loop.time()
        if self._refusal:
            self._refuse(*self._refusal)
        elif self.cycle.more_body and self.cycle.response_complete:
            self._rest_since, self._bytes = self.loop.time(), 0

    def shutdown(self) -> None:
        """The service ends; a first request that is already on its way is still answered."""
        if self._outlet:
            self._outlet.release()
        if self.cycle is None and not self.transport.is_closing():
            self.loop.call_later(FIRST_SECONDS, super().shutdown)
        elif self._ended_at is None or self.transport.get_write_buffer_size():
            super().shutdown()
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Handles bytes that are invalid HTTP, or too many."""
        self._refuse(*self._fault)

    def _should_upgrade(self) -> bool:
        """Never, whatever libraries are installed."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Continues with HTTP/1.1, as clients that offer HTTP/2 expect; not logged.

        The parser attributes a body to the other protocol and parses nothing after it: its input
        is fed to a new one, without the offer.
        """
        if not self._offered:
            return
        self._offered = False
        upgrade = sys.exception()  # the parser's, which holds where it stopped
        assert upgrade is not None
        rest = self._fed[upgrade.args[0] :]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s" % (method, self.url, version)]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in OFFERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._again = b"\r\n".join([*head, b"", rest])  # not from here: there may be many

    def _head(self) -> int:
        """Bytes of the request's line and headers."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _interrupt(self, status: int, detail: str) -> None:
        """Refuses the rest of a body; silently, where its request is already answered."""
        if self.cycle is None or self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(status, detail)

    def _refuse(self, status: int, detail: str) -> None:
        """Sends an error response in place of the application and closes the connection."""
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun and (self.pipeline or self.cycle.scope is not self.scope):  # after the others
            self._refusal = status, detail
            return
        if begun and self.cycle.response_started:
            self.transport.abort()  # no response of its own in the middle of another one
            return
        # Of what is being read, as far as it has come.
        scope: dict[str, Any] = {"method": "-", "path": "-", "headers": []}
        if self._reading:
            path = self.url.partition(b"?")[0].decode("latin-1")
            scope |= {"path": path or "-", **self.scope}
        request_id = scope.get(REQUEST_ID) or (given(scope) or new_id()).decode()
        headers = self._write(status, detail, request_id)
        self._linger()
        if begun:  # its body broke off: the application is told that its client disconnected
            cast("dict[str, Any]", self.scope)[ANSWERED] = status
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            metrics.CONNECTIONS_REFUSED.labels(status).inc()
        if self._shared.log:
            scope |= {REQUEST_ID: request_id, "client": self.client}
            seconds = self.loop.time() - self._since if self._since is not None else 0.0
            self._shared.log.add(scope, {"status": status, "headers": headers}, seconds)

    def _write(self, status: int, detail: str, request_id: str) -> Headers:
        """Sends a problem document; returns its headers."""
        answer, headers = problem(status, detail, request_id, self.server_state.default_headers)
        self.transport.write(answer)
        return headers

    def _linger(self) -> None:
        """Ends the connection after what has been written; what still comes is read and dropped."""
        if self._ended_at is not None:
            return
        shared = self._shared
        shared.forget(self)
        self._ended_at = self._heard_at = self.loop.time()
        self._bytes = 0
        if len(shared.lingering) < LINGERING and self.transport.can_write_eof():
            shared.lingering.add(self)
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()

    def is_idle(self) -> bool:
        """Whether it had a response, all of which is sent, and no request has begun since."""
        return (
            self in self._shared.idle
            and self._since is None
            and self._rest_since is None
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    def check(self, now: float) -> None:
        """Closes the connection if a time limit is exceeded."""
        unread = self.transport.get_write_buffer_size()
        if self.transport.is_closing():
            # What is still to be sent may never be read.
            pass
        elif self._ended_at is not None:
            if unread:  # its time begins at the end of the response
                self._ended_at = self._heard_at = now
            elif (
                now - self._ended_at > LINGER_SECONDS or now - self._heard_at > LINGER_IDLE_SECONDS
            ):
                self.transport.abort()
        elif self._since is not None and now - self._since > self._shared.head_seconds:
            if self.cycle is not None and not self.cycle.response_complete:
                pass  # a request before it is still being answered
            elif self._reading:
                seconds = self._shared.head_seconds
                self._refuse(408, f"the headers did not arrive within {seconds:g} s")
            else:
                self.transport.close()
        elif self._rest_since is not None:
            allowed = OVERTAKEN_SECONDS if self._outlet else self._shared.head_seconds
            if now - self._rest_since <= allowed:
                pass
            elif self._outlet:
                self._outlet.release()
                self._outlet, self._rest_since = None, now
            else:
                self.transport.abort()
        elif now - self._shared.idle.get(self, now) > self.timeout_keep_alive:
            self.transport.close()
        if unread == 0 or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > UNREAD_SECONDS:
            self.transport.abort()


def problem(
    status: int, detail: str, request_id: str, first: Headers = (), retry_after: int = 1
) -> tuple[bytes, Headers]:
    """A problem as it is sent to end a connection, and its headers.

    Args:
        status: of HTTP.
        detail: what is wrong, for people.
        request_id: identifies its line in the log.
        first: headers to put before all others.
        retry_after: seconds, for a 503.
    """
    body = document(status, detail, request_id=request_id)
    headers = [
        *first,
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *HEADERS,
        (HEADER, request_id.encode()),
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"%d" % retry_after))
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % header for header in headers]
    return b"\r\n".join([*lines, b"", body]), headers


def hide_invalid_requests() -> None:
    """Keeps invalid requests of clients out of the log; the access log has them."""
    logging.getLogger("uvicorn.error").addFilter(_not_of_a_client)


def _not_of_a_client(record: logging.LogRecord) -> bool:
    return record.msg != "Invalid HTTP request received."
