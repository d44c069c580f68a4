"""Answers every request with 503 from the supervisor while no worker is running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from labelcurve.serving.connections.connection import problem
from labelcurve.serving.telemetry.logs import new_id

SECONDS = 2.0
"""Time limit for sending a request, and again for reading the response."""

CLIENTS = 64
"""Maximum concurrent clients; further ones are closed, to limit descriptors."""


class StandIn:
    """Accepts on the socket of the workers between `open` and `close`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._clients = 0
        self._retry_after = 1

    async def open(self, descriptor: int, retry_after: int) -> None:
        """Answers from now on; further calls change `retry_after`, in seconds."""
        self._retry_after = retry_after
        if self._server is None:
            self._server = await asyncio.start_server(
                self._answer, sock=socket.socket(fileno=os.dup(descriptor))
            )

    def close(self) -> None:
        """Stops accepting connections; open ones are finished."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= CLIENTS:
                await self._converse(reader, writer)
        finally:
            self._clients -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with contextlib.suppress(*gone):
            async with asyncio.timeout(SECONDS):
                await reader.readuntil(b"\r\n\r\n")
        detail = "the service is being started again: try again"
        answer, _ = problem(503, detail, new_id().decode(), retry_after=self._retry_after)
        with contextlib.suppress(*gone):
            writer.write(answer)
            writer.write_eof()
            async with asyncio.timeout(SECONDS):  # closed with bytes unread, it would be reset
                while await reader.read(2**16):
                    pass
