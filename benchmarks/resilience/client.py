"""A minimal HTTP/1.1 client that can hold thousands of connections in one process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from labelcurve.benchmarks.harness.provenance import here, save
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.preprocess import SUFFIXES

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nx-model-version: *([0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    head: bytes
    body: bytes
    seconds: float
    """Time from the request to the last byte."""

    @property
    def version(self) -> str | None:
        """`X-Model-Version`."""
        match = _VERSION.search(self.head)
        return match and match[1].decode()


class Client(asyncio.Protocol):
    """A keep-alive connection with at most one outstanding request."""

    def __init__(self) -> None:
        self.open = True
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: asyncio.Future[Answer] | None = None
        self._since = 0.0

    @classmethod
    async def connect(cls, port: int, before: Client | None = None) -> Client:
        """Connect to 127.0.0.1, unless the connection `before` is still open."""
        if before is not None and before.open:
            return before
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for the answer.

        Raises:
            ConnectionError: the connection was closed before the answer was complete.
        """
        if not self.open or self._transport is None:
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._since = perf_counter()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Abort the connection."""
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.open = False
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"closed before the answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        if _CLOSE.search(head):
            self.open = False
        if self._waiting and not self._waiting.done():
            took = perf_counter() - self._since
            self._waiting.set_result(Answer(int(head[9:12]), head, body, took))


def post(body: bytes, query: str = "", headers: str = "") -> bytes:
    """Build a request to `/classify`."""
    return (
        f"POST /classify{query} HTTP/1.1\r\nHost: localhost\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str) -> bytes:
    """Build a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def closed_loop(
    port: int,
    clients: int,
    until: Callable[[], bool],
    requests: Sequence[bytes],
    heard: Callable[[int, Answer | ConnectionError], Awaitable[None] | None],
) -> None:
    """Keep `clients` connections busy, one request at a time each, until `until` returns true.

    Args:
        port: of the service, on 127.0.0.1.
        clients: number of connections.
        until: asked before each request.
        requests: sent in turn.
        heard: called with the index of a request and its outcome; what it returns is awaited
            before the client's next request.
    """

    async def run(number: int) -> None:
        client: Client | None = None
        while not until():
            number = (number + 1) % len(requests)
            try:
                client = await Client.connect(port, client)
                answer: Answer | ConnectionError = await client.ask(requests[number])
            except ConnectionError as error:
                answer = error
                await asyncio.sleep(0.01)
            if (pause := heard(number, answer)) is not None:
                await pause
        if client:
            client.close()

    await asyncio.gather(*[run(first) for first in range(clients)])


async def ready(port: int, seconds: float = 60.0) -> None:
    """Wait until `/readyz` is 200.

    Raises:
        LabelcurveError: it was not in time.
    """
    end = perf_counter() + seconds
    while perf_counter() < end:
        # A worker that died while it started leaves a socket that still accepts connections.
        with suppress(ConnectionError, TimeoutError):
            client = await Client.connect(port)
            try:
                async with asyncio.timeout(end - perf_counter()):
                    status = (await client.ask(get("/readyz"))).status
            finally:
                client.close()
            if status == 200:
                return
        await asyncio.sleep(0.05)
    raise LabelcurveError(f"port {port} was not ready after {seconds:g} s")


def images(folder: Path, least: int, most: int) -> list[bytes]:
    """Read up to `most` image files of a folder.

    Raises:
        LabelcurveError: there are fewer than `least`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < least:
        raise LabelcurveError(f"--images {folder} holds {len(paths)} images: {least} are needed")
    return [path.read_bytes() for path in paths[:most]]


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result and its provenance as JSON."""
    save(path, {**result, "provenance": here().model_dump()})
    print(f"{path}: written")
