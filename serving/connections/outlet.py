"""Writes the head of a response together with its body, once the request's body has ended.

uvicorn writes head and body one after the other, in two system calls, and a client that reads once
often gets only the head. ASGI asks servers to wait for the body before they send the head.

A proxy that streams requests (nginx with `proxy_request_buffering off`) closes the connection to
its client if the response overtakes the request's body, although it announced to keep it: the
client's next request on it gets no response. The connection says when to stop waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

CONTINUE = b"HTTP/1.1 100 "
"""Start of an interim response (100 Continue); the response itself follows later."""


class Outlet:
    """Replaces the transport for uvicorn, for one request."""

    __slots__ = ("_end", "_head", "_held", "_transport", "is_closing")

    def __init__(
        self, transport: asyncio.Transport, end: Callable[[], None], *, has_body: bool
    ) -> None:
        """Nothing is written yet.

        Args:
            transport: that of the connection.
            end: called in place of the transport's `close`, which could lose the answer.
            has_body: whether something follows the head; nothing does in an answer to HEAD.
        """
        self._transport = transport
        self._end = end
        self._head = None if has_body else b""
        """None before it is there, empty once it is written."""
        self._held: list[bytes] | None = []
        """Data held until the request's body ends; None afterwards."""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Writes `data`, except the head, which is held until more follows."""
        if self._head is None and not data.startswith(CONTINUE):
            self._head = data
        elif self._head:
            head, self._head = self._head, b""
            self._pass(head + data)
        else:
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        if self._held is None or data.startswith(CONTINUE):
            self._transport.write(data)
        else:
            self._held.append(data)

    def release(self) -> None:
        """Writes what was held back, and from now on everything at once."""
        if self._held:
            self._transport.write(b"".join(self._held))
        self._held = None

    def close(self) -> None:
        """Ends the connection with this answer."""
        if self._head:  # its body broke off
            self.write(b"")
        self.release()
        self._end()
